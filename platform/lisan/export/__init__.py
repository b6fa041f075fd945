"""Exports models to the layouts that other engines load."""
