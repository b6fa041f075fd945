"""Weights in memory and on storage: load, resize, adapt, score. No text, no Ray."""
