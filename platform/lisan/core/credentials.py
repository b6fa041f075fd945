"""Hides user names, passwords and keys in URLs before text is printed or stored."""

import re

USER = re.compile(r"(?<=://)(?:[^/?#\s\"'<>]+|[^/?#\s\"'<>@:]*:(?!\d*/)[^\s\"'<>]*)@")
"Matches up to the last @ before the path, because a password may contain one; a key with a slash is no port."
KEY = re.compile(r"([?&][\w.-]*(?:key|password|secret|signature|token)[\w.-]*=)[^&\s\"']+", re.IGNORECASE)


def hide_credentials(text: str) -> str:
    """Return the text with *** in place of the credentials of every URL in it."""
    return KEY.sub(r"\1***", USER.sub("***@", text))
