"""Generates the C library."""
