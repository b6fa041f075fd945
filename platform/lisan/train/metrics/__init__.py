"""Metrics of a run: loss, throughput, MFU, data read; its log and its page."""
