"""Fertility of tokenizers: tokens per word, measured and reported."""
