"""Parallelism: FSDP2 and tensor parallelism."""
