"""Weights to replies: the endpoint and the gates in front of it."""
