"""Deploys the endpoint of a registered model on Ray Serve."""
