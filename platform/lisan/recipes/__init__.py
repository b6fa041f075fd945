"""Recipes: lists of jobs, run in order, and their models compared."""
