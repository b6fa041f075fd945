"""Chat templates: one renders training examples, evaluation prompts and the requests of the endpoint."""
