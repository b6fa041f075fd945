"""The fertility report, from tokenizers and a corpus to figures and a page."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from bilingual import ARABIC, BASES, ENGLISH, SPECIAL, write_base, write_corpus
from tiny import Recorder, no_run

from lisan.core.artifact import Artifact, Ref, Store
from lisan.core.config import compose
from lisan.core.errors import ArtifactError, ConfigError, DataError
from lisan.core.stage import StorageConfig, run_stage
from lisan.tokenizer.expand import bpe
from lisan.tokenizer.fertility.config import FertilityConfig
from lisan.tokenizer.fertility.fertility_page import CutSentence, FertilityPage, render_page
from lisan.tokenizer.fertility.figures import HISTOGRAM, MeasuredTokenizer, histogram_of
from lisan.tokenizer.fertility.measure import measure
from lisan.tokenizer.fertility.report_fertility import FERTILITY, pick_sentences
from lisan.tokenizer.pieces import PieceText
from lisan.tokenizer.tokenizer import load_tokenizer, write_folder

CONF = Path(__file__).parents[2] / "conf"
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Outline(HTMLParser):
    """Collects the elements of a page and its text, and sees that every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a corpus of three sources in two languages, and a tokenizer that has a learning curve."""
    root = tmp_path_factory.mktemp("fertility")
    write_corpus(root, {"ar_news": ARABIC[:2], "ar_books": ARABIC[2:], "en": ENGLISH})
    store = Store(str(root))
    draft = store.begin(Ref.parse("tokenizer/arabic@v1"), {"of": "tests"}, ())
    definition = bpe.learn([*ARABIC, *ENGLISH] * 3, 560, list(SPECIAL), 2)
    write_folder(Path(draft.location.full_path), definition, {"eos_token": SPECIAL[0]}, "")
    draft.commit({"learning_curve": [[0, 9.5], [100, 4.0], [300, 2.5]]})
    return root


@pytest.fixture(scope="module")
def config(root: Path) -> FertilityConfig:
    return FertilityConfig(
        name="f",
        tokenizers={"gpt": write_base(root / "gpt", BASES["gpt"]()), "arabic": "tokenizer/arabic@v1"},
        corpus="corpus/small@v1",
        storage=StorageConfig(root=str(root)),
    )


def run(config: FertilityConfig, opened: Any = no_run) -> Artifact:
    return run_stage(FERTILITY, config, opened, lambda _: None)


@pytest.fixture(scope="module")
def report(config: FertilityConfig) -> Artifact:
    return run(config)


def read(report: Artifact, name: str) -> str:
    return (report.location / name).read_bytes().decode()


def test_the_figures_are_those_of_the_text_pooled_by_language(report: Artifact, config: FertilityConfig) -> None:
    figures = json.loads(read(report, "report.json"))["tokenizers"]
    for label, place in config.tokenizers.items():
        folder = Path(config.storage.root) / "tokenizer/arabic/v1" if "@" in place else place
        for language, texts in (("ar", ARABIC), ("en", ENGLISH)):
            row = measure(load_tokenizer(folder), texts)
            found = figures[label]["languages"][language]
            assert found["tokens"] == row.num_tokens
            assert found["tokens_per_word"] == row.fertility
            assert found["whole_word_ratio"] == row.whole_word_ratio
            assert found["words_in_context"] == pytest.approx(4096 / row.fertility)
            assert sum(found["words_by_tokens"].values()) == pytest.approx(1)


def test_ratios_are_taken_against_the_base(report: Artifact, config: FertilityConfig) -> None:
    metrics = report.facts["metrics"]
    factor = metrics["gpt/ar/tokens_per_word"] / metrics["arabic/ar/tokens_per_word"]
    assert factor > 1.5
    assert (metrics["gpt/ar/factor"], metrics["arabic/ar/factor"]) == (1.0, pytest.approx(factor, abs=1e-5))
    other = run(replace(config, base="arabic", version="v2")).facts["metrics"]
    assert other["gpt/ar/factor"] == pytest.approx(1 / factor, abs=1e-5)
    assert other["gpt/ar/tokens_per_word"] == metrics["gpt/ar/tokens_per_word"]


def test_the_first_tokenizer_is_the_base_and_belongs_to_the_reports_identity(config: FertilityConfig) -> None:
    turned = replace(config, base=None, tokenizers=dict(reversed(config.tokenizers.items())))
    assert (config.base, turned.base) == ("gpt", "arabic")
    run(config)
    with pytest.raises(ArtifactError, match="base: 'gpt' -> 'arabic'"):
        run(turned)


def test_figures_go_to_the_manifest_and_to_the_tracker(report: Artifact, config: FertilityConfig) -> None:
    class Filing(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.files: dict[str, bytes] = {}

        def log_file(self, name: str, content: bytes) -> None:
            self.files[name] = content

    told = Filing()

    @contextmanager
    def opened(*_: object) -> Iterator[Filing]:
        yield told

    made = run(replace(config, version="v3"), opened)
    assert told.steps[0].items() >= made.facts["metrics"].items()
    assert {"report.html", "report.json", "manifest.json"} <= set(told.files)
    assert set(report.manifest["parents"]) == {"corpus/small@v1", "tokenizer/arabic@v1"}
    assert report.facts["metrics"].items() >= {"gpt/num_pieces": 340.0, "arabic/num_pieces": 560.0}.items()


def test_special_tokens_are_pieces_but_hold_no_letters(report: Artifact) -> None:
    found = json.loads(read(report, "report.json"))["tokenizers"]["arabic"]
    definition = bpe.learn([*ARABIC, *ENGLISH] * 3, 560, list(SPECIAL), 2)
    latin = [piece for piece in definition["model"]["vocab"] if re.search("[A-Za-z]", piece) and piece not in SPECIAL]
    assert found["pieces_with_letters"]["latin"] == len(latin)
    assert found["num_pieces"] == 560


def test_measuring_again_gives_the_same_report(report: Artifact, config: FertilityConfig) -> None:
    again = run(replace(config, version="v4"))
    assert read(again, "report.json") == read(report, "report.json")


def test_a_source_is_measured_on_as_many_bytes_as_asked(config: FertilityConfig) -> None:
    some = run(replace(config, version="v5", max_bytes=200, sources=("ar_news", "en")))
    languages = json.loads(read(some, "report.json"))["languages"]
    assert 100 < languages["ar"]["bytes"] <= 200
    assert languages["ar"]["sources"] == ["ar_news"]
    assert some.facts["sampled_bytes"] == sum(language["bytes"] for language in languages.values())


def test_the_terminal_shows_every_tokenizer_and_language(
    config: FertilityConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run(replace(config, version="v6"))
    said = capsys.readouterr().out
    for language, tokenizer in (("ar", "gpt"), ("en", "gpt")):
        assert re.search(rf"^ *{language} +{tokenizer} ", said, re.M)
    assert said.count(" arabic ") == 2
    assert f"{made.facts['metrics']['arabic/ar/tokens_per_word']:.2f}" in said


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(report: Artifact) -> None:
    html = read(report, "report.html")
    outline = Outline(html)
    tags = [tag for tag, _ in outline.elements]
    assert not {"script", "link", "img", "iframe"} & set(tags)
    assert not re.search(r"https?://|url\(", html)
    assert tags.count("svg") == 6 + 2 + 1  # figures, one histogram a language, the learning curves
    assert "prefers-color-scheme: dark" in html
    assert {"gpt", "arabic", "corpus/small@v1, split validation"} <= set(outline.text)


def test_the_page_shows_arabic_from_right_to_left_and_bytes_as_bytes(report: Artifact) -> None:
    html = read(report, "report.html")
    cut = re.findall(r'<p dir="(rtl|ltr)">(.*?)</p>', html, re.S)
    shown = {"rtl": [], "ltr": []}  # type: dict[str, list[str]]
    for direction, pieces in cut:
        shown[direction].append(pieces)
    assert shown["rtl"]
    assert shown["ltr"]
    assert all(re.search("[\u0600-\u06ff]|<i dir=.ltr.>", pieces) for pieces in shown["rtl"])
    assert not any(re.search("[\u0600-\u06ff]", pieces) for pieces in shown["ltr"])
    assert any("<i" in pieces for pieces in shown["rtl"])
    spelt = "".join(re.findall(r">([0-9A-F ]+)</i>", shown["rtl"][0])).split()
    assert all(int(byte, 16) >= 0x80 for byte in spelt)


def test_what_a_tokenizer_or_a_text_holds_cannot_become_markup() -> None:
    row = measure(load_tokenizer_of("<b>x</b>"), ["<script>"], "s", "en")
    one = MeasuredTokenizer(
        label="a", place="<i>p</i>", num_pieces=3, scripts={"latin": 1}, rows=[row], languages={"en": row}
    )
    example = CutSentence("<script>alert(1)</script>", {"a": [[PieceText("<script>", False)]]})
    html = render_page(
        FertilityPage(title="<u>t</u>", base="a", context_length=8, measured=[one], examples={"en": [example]})
    )
    assert not {"script", "u", "b"} & {tag for tag, _ in Outline(html).elements}


def load_tokenizer_of(text: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=bpe.open_definition(bpe.learn([text], 270, [], 2)))


@pytest.mark.parametrize("number", [1, 12])
def test_any_number_of_tokenizers_can_be_compared(number: int, config: FertilityConfig) -> None:
    place = config.tokenizers["gpt"]
    many = {f"t{index}": place for index in range(number)}
    made = run(replace(config, name=f"many-{number}", tokenizers=many, base=None))
    outline = Outline(read(made, "report.html"))
    assert {*many} <= set(outline.text)
    assert "best" not in {attributes.get("class") for _, attributes in outline.elements}


def test_a_histogram_puts_long_words_together() -> None:
    row = measure(load_tokenizer_of("ab"), ["a bb c dddd eeeeeeee"])
    assert histogram_of(row) == [1 / 5, 1 / 5, 1 / 5, 0.0, 2 / 5]
    assert len(histogram_of(row)) == len(HISTOGRAM)


def test_sentences_are_drawn_by_seed_and_are_of_readable_length() -> None:
    texts = [
        ". ".join(f"{name} went home to read a long book about water" for name in "ABCDEFGHIJKL"),
        "x" * 500,
        "short",
    ]
    first, again, other = (pick_sentences(order, 3, seed) for order, seed in ((texts, 1), (texts[::-1], 1), (texts, 2)))
    assert first == again != other
    assert len(first) == 3
    assert all(re.fullmatch(r"[A-L] went home to read a long book about water\.?", sentence) for sentence in first)


def test_a_text_without_a_sentence_is_shown_from_its_beginning() -> None:
    assert pick_sentences(["x" * 500], 3, 0) == ["x" * 140]
    assert pick_sentences([" \n"], 3, 0) == []


@pytest.mark.parametrize(
    ("text", "direction"), [("كتاب book", "rtl"), ("12 (كتاب)", "rtl"), ("book كتاب", "ltr"), ("12", "ltr")]
)
def test_the_first_letter_gives_a_sentence_its_direction(text: str, direction: str) -> None:
    assert CutSentence(text, {}).direction == direction


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"corpus": "corpus/none@v1"}, ArtifactError, "corpus/none@v1 does not exist"),
        (
            {"sources": ("fr",)},
            DataError,
            "corpus/small@v1 has no source fr of documents; sources: ar_books, ar_news, en",
        ),
        ({"split": "test"}, DataError, "corpus/small@v1 has no documents in split test .* one of: train, validation"),
        ({"sources": ("en",), "split": "test"}, DataError, "no split test of documents/en; splits: train, validation"),
        ({"tokenizers": {"x": "tokenizer/x@v1"}}, ArtifactError, "tokenizer/x@v1 does not exist"),
        (
            {"tokenizers": {"x": "corpus/small@v1"}},
            ConfigError,
            r"tokenizers\.x must be a tokenizer, .* got corpus/small",
        ),
        ({"tokenizers": {"x": "/no/such/folder"}}, DataError, r"tokenizers\.x: .*/no/such/folder"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence_before_anything_is_measured(
    changes: dict[str, Any],
    error: type[Exception],
    said: str,
    config: FertilityConfig,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(error, match=said) as caught:
        run(replace(config, name="refused", base=None, **changes))
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""
    assert not (Path(config.storage.root) / "report" / "refused" / "v1").exists()


def test_a_broken_tokenizer_file_is_one_sentence_with_its_label(config: FertilityConfig, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(DataError, match=r"^tokenizers\.broken: .*") as caught:
        run(replace(config, name="refused", tokenizers={**config.tokenizers, "broken": str(tmp_path)}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokenizers": {}, "base": None}, "tokenizers must name at least one"),
        ({"tokenizers": {"a b": "x"}, "base": None}, "a label must be letters, .* got 'a b'"),
        ({"tokenizers": {"a/b": "x"}, "base": None}, "a label must be letters, .* got 'a/b'"),
        ({"base": "none"}, "base must be one of the labels gpt, arabic, got 'none'"),
        ({"sources": ("en", "en")}, "sources names en twice"),
        ({"max_bytes": 0}, "max_bytes must be >= 1, got 0"),
        ({"num_examples": -1}, "num_examples must be >= 0, got -1"),
    ],
)
def test_a_setting_that_cannot_work_is_one_sentence(
    changes: dict[str, Any], said: str, config: FertilityConfig
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        replace(config, **changes)
    assert "\n" not in str(caught.value)


def test_labels_are_given_on_the_command_line_and_keep_their_order() -> None:
    given = ["name=f", "corpus=corpus/small@v1", "tokenizers={z: /a, b: model/m@v1}"]
    found = compose(CONF, "report_fertility", FertilityConfig, given)
    assert list(found.tokenizers.items()) == [("z", "/a"), ("b", "model/m@v1")]
    assert found.base == "z"


def test_a_label_twice_in_a_recipe_is_one_sentence(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    copytree(CONF, conf)
    (conf / "recipe" / "twice.yaml").write_text("# @package _global_\ntokenizers:\n  a: x\n  a: y\n")
    with pytest.raises(ConfigError, match="found duplicate key a") as caught:
        compose(conf, "report_fertility", FertilityConfig, ["recipe=twice", "name=f", "corpus=corpus/small@v1"])
    assert "\n" not in str(caught.value)


@pytest.mark.skipif("LISAN_DATA" not in os.environ, reason="LISAN_DATA is not set: no published tokenizer to compare")
def test_published_tokenizers_are_compared_side_by_side(config: FertilityConfig) -> None:
    folder = Path(os.environ["LISAN_DATA"]) / "tokenizers"
    places = {"neox": str(folder / "gpt-neox-olmo-50k"), "openllama": str(folder / "openllama-3b-32k")}
    metrics = run(replace(config, name="real", tokenizers=places, base=None)).facts["metrics"]
    # Open LLaMA has no Arabic letter but alif: it spells all the others in two bytes.
    assert metrics["openllama/ar/single_byte_ratio"] > 0.7
    assert metrics["neox/ar/single_byte_ratio"] < 0.3
    assert metrics["openllama/en/tokens_per_word"] < 2 < metrics["neox/ar/tokens_per_word"]
