"""Evaluates models: tasks, scores and reports."""
