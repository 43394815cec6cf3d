"""For tests, of this package and of yours: conformance suites, hypothesis strategies, and a training job in threads."""
