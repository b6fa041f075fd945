import pytest

from lisan.corpus.clean.scripts import is_arabic, language_of, scripts_of, spells_with_joiners


@pytest.mark.parametrize(
    ("label", "language", "scripts"),
    [
        ("ar", "ar", ("Arab",)),
        ("ar-EG", "ar", ("Arab",)),
        ("arb_Arab", "ar", ("Arab",)),
        ("ary-Latn", "ary", ("Latn",)),
        ("fa-IR", "fa", ("Arab",)),
        ("pes_Arab", "fa", ("Arab",)),
        ("FA", "fa", ("Arab",)),
        ("eng_Latn", "en", ("Latn",)),
        ("zho_Hans", "zh", ("Hani",)),
        ("jpn_Jpan", "ja", ("Hani", "Hira", "Kana")),
        ("sr", "sr", ("Latn", "Cyrl")),
        ("sr-Latn-RS", "sr", ("Latn",)),
        ("qaa", "qaa", ()),
        ("en-Zxxx", "en", ()),
    ],
)
def test_a_label_names_a_language_and_its_scripts(label: str, language: str, scripts: tuple[str, ...]) -> None:
    assert (language_of(label), scripts_of(label)) == (language, scripts)


def test_only_arabic_in_arabic_script_is_arabic() -> None:
    assert [is_arabic(label) for label in ("ary", "ar-MA", "arz_Arab", "ary-Latn", "fa")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_joiners_may_matter_in_every_language_but_arabic_that_uses_or_may_use_arabic_script() -> None:
    spelt = ("fa-IR", "pes_Arab", "ur", "ckb", "ug", "ps_AF", "ku", "qaa")
    assert all(map(spells_with_joiners, spelt))
    assert not any(map(spells_with_joiners, ("ar", "ary", "en", "ku-Latn", "he")))
