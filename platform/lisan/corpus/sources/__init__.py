"""Reads raw files: paths, compression, encodings, csv, parquet, json and text."""
