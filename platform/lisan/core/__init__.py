"""The foundation: errors, configuration, storage, artifacts, seeds. Knows nothing of text, tensors or Ray."""
