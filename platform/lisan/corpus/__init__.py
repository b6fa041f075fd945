"""Text to records: sources, normalisation, duplicates, and the generated micro-world."""
