"""chrF, against sacrebleu."""

import pytest

from lisan.inference.chrf import chrf


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("The capital of Morocco is Rabat.", "Rabat is the capital of Morocco.", 75.34221910671187),
        ("الرباط", "الرباط هي عاصمة المغرب.", 22.929544103272274),
        ("hello", "hello world, this is long", 18.441861598832656),
        ("a", "ab", 55.55555555555556),
        ("same text", "same text", 100.0),
        ("xyz", "abc", 0.0),
        ("", "abc", 0.0),
    ],
)
def test_chrf_is_sacrebleus(text: str, reference: str, expected: float) -> None:
    """The expected numbers are those of sacrebleu 2.6.0, sentence_chrf with its defaults."""
    assert chrf(text, reference) == pytest.approx(expected)
