"""Credentials in URLs are neither printed nor stored."""

from dataclasses import dataclass

import pytest

from lisan.core.command_line.run_job import sentences
from lisan.core.credentials import hide_credentials
from lisan.core.errors import ConfigError
from lisan.core.identity import fingerprint, to_plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://bob:se@cret@host:5000/x", "http://***@host:5000/x"),
        ("at postgresql://me:hush@db/x, then", "at postgresql://***@db/x, then"),
        ("https://token@host", "https://***@host"),
        ("s3://AKIA:hu/sh@bucket/a", "s3://***@bucket/a"),
        ("http://host:5000/a@v1", "http://host:5000/a@v1"),
        (
            "s3://AKIA:hush@bucket/a?region=x&secret_key=s&scheme=http",
            "s3://***@bucket/a?region=x&secret_key=***&scheme=http",
        ),
        ('{"uri": "http://a:b@h/v1", "note": "she@home"}', '{"uri": "http://***@h/v1", "note": "she@home"}'),
        ("https://host/models/base@v1 and model/a@v1", "https://host/models/base@v1 and model/a@v1"),
    ],
)
def test_user_names_passwords_and_keys_are_hidden(text: str, shown: str) -> None:
    assert hide_credentials(text) == shown


@dataclass(frozen=True)
class Endpoint:
    url: str


def test_a_password_is_no_identity_and_not_in_the_manifest() -> None:
    config = Endpoint("http://bob:se@cret@host/v1")
    assert to_plain(config, identity_only=True) == {"url": "http://***@host/v1"}
    assert fingerprint(config) == fingerprint(Endpoint("http://eve:other@host/v1"))
    assert to_plain(config) == {"url": config.url}  # what is loaded again is whole


def test_no_sentence_shows_a_password() -> None:
    with pytest.raises(SystemExit) as caught, sentences():
        raise ConfigError("tracking.uri http://bob:se@cret@host does not answer")
    assert caught.value.code == "ConfigError: tracking.uri http://***@host does not answer"
