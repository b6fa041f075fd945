"""Hides what must be neither printed nor stored: user names, passwords and keys in URLs."""

import re

USER = re.compile(r"(?<=://)(?:[^/?#\s\"'<>]+|[^/?#\s\"'<>@:]*:(?!\d*/)[^\s\"'<>]*)@")
"Up to the last @ before the path: a password may hold one. A key with a slash in it is no port."
KEY = re.compile(r"([?&][\w.-]*(?:key|password|secret|signature|token)[\w.-]*=)[^&\s\"']+", re.IGNORECASE)


def hide_credentials(text: str) -> str:
    """Return the text with *** in place of the credentials of every URL in it."""
    return KEY.sub(r"\1***", USER.sub("***@", text))
