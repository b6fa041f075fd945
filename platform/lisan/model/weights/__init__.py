"""Weights: reads, draws, checks and writes them, shard by shard."""
