from collections.abc import Callable

import pytest

from lisan.core.errors import DataError
from lisan.corpus.config import SourceConfig, SourceFormat
from lisan.corpus.sources.encoding import check_encoding, guess_encodings

Write = Callable[..., str]
ARABIC = "ذهب الولد إلى المدرسة وكان اليوم جميلا\n" * 50


@pytest.mark.parametrize(
    ("text", "language", "encoding", "likely"),
    [
        (ARABIC, "ar", "windows-1256", "windows-1256"),
        (ARABIC, "arb_Arab", "iso-8859-6", "iso-8859-6"),
        ("זהו משפט בעברית", "he", "cp1255", "windows-1255"),
        ("ภาษาไทยเป็นภาษาที่สวยงาม", "th", "tis-620", "tis-620"),
        ("这是一个中文的句子，我们在学习", "zh", "gbk", "gbk"),
        ("這是一個中文的句子，我們在學習", "zh-Hant", "big5", "big5"),
        ("これは日本語の文章です", "ja", "cp932", "cp932"),
        ("이것은 한국어 문장이다", "ko", "cp949", "cp949"),
        ("Это предложение на русском", "ru", "koi8-r", "koi8-r"),
        ("Αυτή είναι μια πρόταση", "el", "cp1253", "windows-1253"),
        ("Café à la crème", "fr", "latin-1", "windows-1252"),
        ("Zażółć gęślą jaźń", "pl", "cp1250", "windows-1250"),
        ("Günaydın, şimdi öğreniyoruz", "tr", "cp1254", "windows-1254"),
        (ARABIC, "ar", "utf-16", "utf-16"),
    ],
)
def test_a_file_in_another_encoding_is_refused_with_the_likely_ones(
    text: str, language: str, encoding: str, likely: str, write: Write
) -> None:
    path = write("f.txt", f"{text}\n".encode(encoding) * 20)
    with pytest.raises(
        DataError, match=rf"f\.txt is not utf-8: byte \d+ .*(may be|looks like) {likely}.*(set|convert)"
    ):
        check_encoding("s", SourceConfig(format=SourceFormat.text, path=(path,), language=language))


def test_of_bytes_that_no_encoding_of_the_language_explains_none_is_named(write: Write) -> None:
    path = write("f.txt", b"\x81\x8d\xff\xfe\x8f\n" * 20)
    with pytest.raises(DataError, match=r"set sources.s.encoding to what it was written in, or convert it to utf-8"):
        check_encoding("s", SourceConfig(format=SourceFormat.text, path=(path,), language="he"))
    assert guess_encodings([b"\xc7\xe1\n"], "qaa") == []


def test_the_first_bad_byte_is_named(write: Write) -> None:
    path = write("f.txt", b"plain\n" + b"\xc7\xe1\n" * 20)
    with pytest.raises(DataError, match=r"byte 6 cannot .*set sources.s.encoding=windows-1256"):
        check_encoding("s", SourceConfig(format=SourceFormat.text, path=(path,), language="ar"))


def test_a_few_bad_lines_do_not_condemn_a_file(write: Write) -> None:
    for data in (ARABIC.encode() + b"\xff broken\n" * 9, b"plain\n" * 20 + b"caf\xe9\n" * 4):
        path = write("f.txt", data)
        check_encoding("s", SourceConfig(format=SourceFormat.text, path=(path,)))


def test_a_latin_text_with_rare_accents_is_still_recognised(write: Write) -> None:
    path = write("f.txt", b"plain\n" * 2000 + b"caf\xe9\n" * 5)
    with pytest.raises(DataError, match="may be windows-1252"):
        check_encoding("s", SourceConfig(format=SourceFormat.text, path=(path,), language="fr"))


def test_the_second_side_of_a_pair_is_looked_at_too(write: Write) -> None:
    one, two = write("a.en", "plain\n" * 20), write("a.ar", ARABIC.encode("windows-1256"))
    source = SourceConfig(format=SourceFormat.aligned, path=(one,), pair_path=(two,), language="en", pair_language="ar")
    with pytest.raises(DataError, match=r"a\.ar is not utf-8: .*may be windows-1256"):
        check_encoding("s", source)
