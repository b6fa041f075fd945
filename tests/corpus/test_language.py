import pytest

from lisan.corpus.language import fits_script, guess_language, is_arabic, measure_scripts


def test_shares_of_scripts_add_up_to_one() -> None:
    shares = measure_scripts("abcd مرحبا и 123!")
    assert shares.arabic == pytest.approx(0.5)
    assert shares.latin == pytest.approx(0.4)
    assert shares.other == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The capital of Morocco is Rabat.", "en"),
        ("عاصمة المغرب هي الرباط وهي مدينة كبيرة", "ar"),
        ("واش كاين شي حد هنا دابا حيت بغيت نهضر معاه", "ary"),
        ("ده بيعتبر اهم كتاب عشان كمان قديم", "arz"),
        ("wach kayn chi 7ed hna, ana ghadi n3ess daba 3afak", "ary-Latn"),
        ("12345 !?", "und"),
        ("Привет мир", "und"),
    ],
)
def test_a_plain_text_gets_its_label(text: str, language: str) -> None:
    assert guess_language(text) == language


@pytest.mark.parametrize(
    ("text", "language", "fits"),
    [
        ("مرحبا بكم", "ar", True),
        ("hello there", "ar", False),
        ("hello there", "en", True),
        ("salam 3likom", "ary-Latn", True),
        ("سلام", "ary-Latn", False),
        ("Good morning صباح الخير", "en-ar", True),
        ("Good morning", "en-ar", False),
        ("sbah lkhir صباح لخير", "ary-Latn-ary", True),
        ("1 + 1 = 2", "ar", True),
    ],
)
def test_a_text_is_checked_against_the_scripts_of_its_label(text: str, language: str, fits: bool) -> None:
    assert fits_script(text, language) is fits


def test_moroccan_in_latin_letters_is_not_arabic_script() -> None:
    assert is_arabic("ary")
    assert not is_arabic("ary-Latn")
