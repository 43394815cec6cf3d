"""Where Fatwood meets Spark; the only folder that imports pyspark."""
