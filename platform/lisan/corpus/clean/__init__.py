"""Normalises text and names its language and script."""
