"""Chat templates: one renders training examples, evaluation prompts and what the endpoint serves."""
