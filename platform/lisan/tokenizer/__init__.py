"""A corpus to a tokenizer: pieces learned or added to a base, measured, gated, and what new pieces are made of."""
