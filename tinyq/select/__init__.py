"""Chooses a kernel for every node."""

from tinyq.select.schedule import Candidate, Goal, Layer, Schedule
from tinyq.select.selection import select

__all__ = ["Candidate", "Goal", "Layer", "Schedule", "select"]
