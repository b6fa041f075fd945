"""Preference training: reference log-probabilities and the KL estimate of KTO."""
