"""The command line of a job: choices, overrides, `--help`, and errors of a config in one sentence."""
