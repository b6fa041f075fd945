from collections.abc import Callable

import pytest

from lisan.core.errors import DataError
from lisan.corpus.encoding import check_encoding, guess_encoding
from lisan.corpus.sources import SourceConfig, SourceFormat

Write = Callable[..., str]
ARABIC = "ذهب الولد إلى المدرسة وكان اليوم جميلا\n" * 50


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (ARABIC.encode("windows-1256"), "windows-1256"),
        (ARABIC.encode("iso-8859-6"), "iso-8859-6"),
        (("Café à la crème\n" * 50).encode("latin-1"), "latin-1"),
        (ARABIC.encode("utf-16"), "utf-16"),
    ],
)
def test_a_file_in_another_encoding_is_refused_with_the_likely_one(data: bytes, encoding: str, write: Write) -> None:
    path = write("f.txt", data)
    with pytest.raises(DataError, match=rf"f\.txt is not utf-8: byte \d+ .*looks like {encoding}: (set|conv)"):
        check_encoding("s", SourceConfig(format=SourceFormat.text, path=(path,)))
    assert guess_encoding(data) == encoding


def test_the_first_bad_byte_is_named(write: Write) -> None:
    path = write("f.txt", b"plain\n" + b"\xc7\xe1\n" * 20)
    with pytest.raises(DataError, match=r"byte 6 cannot .*set sources.s.encoding=windows-1256"):
        check_encoding("s", SourceConfig(format=SourceFormat.text, path=(path,)))


def test_a_few_bad_lines_do_not_condemn_a_file(write: Write) -> None:
    for data in (ARABIC.encode() + b"\xff broken\n" * 9, b"plain\n" * 20 + b"caf\xe9\n" * 4):
        path = write("f.txt", data)
        check_encoding("s", SourceConfig(format=SourceFormat.text, path=(path,)))


def test_a_latin_text_with_rare_accents_is_still_recognised(write: Write) -> None:
    path = write("f.txt", b"plain\n" * 2000 + b"caf\xe9\n" * 5)
    with pytest.raises(DataError, match="looks like latin-1"):
        check_encoding("s", SourceConfig(format=SourceFormat.text, path=(path,)))
