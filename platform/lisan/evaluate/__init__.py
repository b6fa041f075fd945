"""Weights to reports: what a model knows, measured."""
