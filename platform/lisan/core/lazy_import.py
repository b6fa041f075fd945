"""Libraries that are imported when something of them is first used.

pyarrow takes longer to import than all else that `--help` needs.
"""

from importlib import import_module
from typing import Any


def lazy_import(name: str) -> Any:
    """Return an object with the attributes of the module, which it imports when it is first asked for one."""
    return _Lazy(name)


class _Lazy:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)
