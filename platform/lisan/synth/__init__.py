"""Makes corpora with models: preferences from sampled and judged answers."""
