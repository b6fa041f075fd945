"""Removes duplicate documents."""
