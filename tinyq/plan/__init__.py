"""Memory planning: lifetimes, placement and the proof that nothing overlaps."""
