import pytest

from lisan.corpus.clean.language import fits_script, guess_language, measure_script


def test_the_share_of_a_script_is_of_all_letters() -> None:
    text = "abcd مرحبا и 123!"
    assert [measure_script(text, script) for script in ("Arab", "Latn", "Cyrl")] == [0.5, 0.4, 0.1]
    assert measure_script(text, "Arab", "Latn") == pytest.approx(0.9)
    assert measure_script("123 !", "Latn") == 0.0


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
    ("text", "labels", "fits"),
    [
        ("مرحبا بكم", "ar", True),
        ("hello there", "ar", False),
        ("hello there", "en", True),
        ("salam 3likom", "ary-Latn", True),
        ("سلام", "ary-Latn", False),
        ("Good morning صباح الخير", "en ar", True),
        ("Good morning", "en ar", False),
        ("sbah lkhir صباح لخير", "ary-Latn ary", True),
        ("1 + 1 = 2", "ar", True),
        ("זהו משפט בעברית", "he", True),
        ("this is English", "he", False),
        ("ม้าและหมา", "th", True),
        ("Это по-русски", "ru-RU", True),
        ("日本語のテキスト", "ja", True),
        ("한국어 문장", "kor_Hang", True),
        ("中文句子", "zh-Hant", True),
        ("हिन्दी वाक्य", "hi_Deva", True),
        ("Ово је реченица", "sr", True),
        ("Ovo je rečenica", "sr", True),
        ("Ovo je rečenica", "sr-Cyrl", False),
        ("whatever this is", "qaa", True),
        ("whatever this is", "und", True),
        ("Good morning و", "en xx", True),
    ],
)
def test_a_text_is_checked_against_the_scripts_of_its_labels(text: str, labels: str, fits: bool) -> None:
    assert fits_script(text, *labels.split()) is fits
