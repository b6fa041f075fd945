"""Runs models: vLLM, clients of OpenAI-compatible endpoints, judges."""
