"""Chooses a kernel for every node."""

from tinyq.select.schedule import Candidate, Goal, Layer, Libraries, Schedule
from tinyq.select.selection import select

__all__ = ["Candidate", "Goal", "Layer", "Libraries", "Schedule", "select"]
