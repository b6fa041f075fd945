"""Builds the model that is trained, and writes it when training is done."""
