"""Turns rows of raw data sets into records."""
