"""Command line of a job: choices, overrides, `--help`, and config errors in one sentence."""
