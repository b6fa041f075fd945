"""Causal language models: load, resize, adapt, shard and score."""
