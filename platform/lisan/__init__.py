"""Lisan teaches a language model a second language and puts it to work."""

__version__ = "0.1.0"
