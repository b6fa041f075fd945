"""Checkpoints: when, how and where the state of a run is written, read and deleted."""
