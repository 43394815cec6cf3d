"""Before a fit: the memory that driver, executors and workers need, and whether a cluster makes the training faster."""

from __future__ import annotations

from fatwood.planning.cluster import Cluster, parse_mbit
from fatwood.planning.planner import Plan, StrategyPlan, plan

__all__ = ["Cluster", "Plan", "StrategyPlan", "parse_mbit", "plan"]
