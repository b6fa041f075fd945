"""Records: documents, conversations, preferences, questions."""
