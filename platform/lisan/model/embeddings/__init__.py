"""Embedding matrices: resizes them and initialises and trains new rows."""
