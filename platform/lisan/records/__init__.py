"""Records, the currency of every room: documents, conversations, preferences, questions."""
