"""Chooses a kernel for every node."""
