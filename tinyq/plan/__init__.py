"""Places every tensor in one arena."""

from tinyq.plan.memory import ALIGNMENT, MemoryPlan, plan, plan_shared
from tinyq.plan.verify import OverlapError, verify_plan

__all__ = ["ALIGNMENT", "MemoryPlan", "OverlapError", "plan", "plan_shared", "verify_plan"]
