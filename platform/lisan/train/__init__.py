"""Rows to weights: one loop, three objectives."""
