"""Passes: what relates operators. Each is a pure function from a graph to a graph."""
