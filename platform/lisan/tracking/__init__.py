"""MLflow runs, registered models, aliases and promotion; system metrics."""
