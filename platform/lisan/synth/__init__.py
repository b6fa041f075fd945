"""Data that models make: answers sampled and judged. Preferences from them are a corpus like any other."""
