"""Imports a library when one of its attributes is first used: pyarrow takes longer to import than all else in `--help`."""

from importlib import import_module
from typing import Any


def lazy_import(name: str) -> Any:
    """Return a stand-in for a module that imports it at the first attribute access."""
    return _Lazy(name)


class _Lazy:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)
