"""Makes rows while training runs, for corpora too large to tokenise first."""
