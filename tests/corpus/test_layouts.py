from typing import Any

import pytest

from lisan.corpus.config import RowLayout, SourceConfig
from lisan.corpus.layouts.layouts import LAYOUTS, contrast, make_records
from lisan.corpus.sources.lines import BadRowError, DroppedRowError, Row
from lisan.records.records import Conversation, Document, Turn


def texts(layout: RowLayout, value: Any, **options: Any) -> list[str]:
    source = SourceConfig(layout=layout, language="en", **options)
    return [record.text for record in make_records(Row("f:0", 1, value), "s", source) if isinstance(record, Document)]


def test_every_layout_is_in_the_table() -> None:
    assert set(LAYOUTS) == set(RowLayout)


def test_text_is_a_string_or_the_field_that_the_source_names() -> None:
    assert texts(RowLayout.text, "plain") == ["plain"]
    assert texts(RowLayout.text, {"body": "b"}, fields={"text": "body"}) == ["b"]


@pytest.mark.parametrize("value", [{"other": "x"}, {"text": 3}, ["x"], None])
def test_a_row_without_the_field_is_bad(value: Any) -> None:
    with pytest.raises(BadRowError, match="text"):
        texts(RowLayout.text, value)


def test_a_blank_text_is_dropped() -> None:
    with pytest.raises(DroppedRowError, match="empty text"):
        texts(RowLayout.text, {"text": " \n"})


def test_front_matter_is_not_text() -> None:
    row = {"text": '---\ntitle: "*On *Science"\nauthor: \n---\n\n# Head\n\nBody'}
    (record,) = make_records(Row("f:0", 1, row), "s", SourceConfig(layout=RowLayout.markdown, language="ar"))
    assert isinstance(record, Document)
    assert (record.text, record.meta["title"]) == ("# Head\n\nBody", "On Science")


def test_gutenberg_keeps_the_book_and_not_its_licence() -> None:
    mark = "*** {} OF THIS PROJECT GUTENBERG EBOOK X ***\n"
    end = "End of the Project Gutenberg EBook\n" + mark.format("END")
    book = f"Legal\n{mark.format('START')}\nIt was.\n\n{end}Licence"
    assert texts(RowLayout.gutenberg, book) == ["It was."]
    with pytest.raises(BadRowError, match="START"):
        texts(RowLayout.gutenberg, "no marks")


def test_the_headline_stands_above_its_article() -> None:
    assert texts(RowLayout.headline, {"text": "Long.", "summary": "Short"}, fields={"headline": "summary"}) == [
        "Short\n\nLong."
    ]


def test_a_pair_becomes_a_document_in_each_direction_with_one_pair_id() -> None:
    source = SourceConfig(layout=RowLayout.parallel, language="en", pair_language="ar")
    one, two = make_records(Row("f:0", 1, {"first": "Hello", "second": "مرحبا"}), "s", source)
    assert isinstance(one, Document)
    assert isinstance(two, Document)
    assert one.text.index("Hello") < one.text.index("مرحبا")
    assert two.text.index("مرحبا") < two.text.index("Hello")
    assert one.meta["pair"] == two.meta["pair"]
    assert one.id != two.id
    assert one.language == two.language == "en-ar"


def test_pairs_are_written_in_several_forms() -> None:
    source: dict[str, Any] = {"pair_language": "ar"}
    found = {
        text.replace(f"word {n}", "").replace(f"كلمة {n}", "")
        for n in range(40)
        for text in texts(RowLayout.parallel, {"first": f"word {n}", "second": f"كلمة {n}"}, **source)
    }
    assert len(found) >= 6


def test_a_pair_with_an_empty_or_equal_side_is_dropped() -> None:
    for row, reason in (({"first": "a", "second": ""}, "empty second"), ({"first": "a", "second": "a "}, "same sides")):
        with pytest.raises(DroppedRowError, match=reason):
            texts(RowLayout.parallel, row, pair_language="ar")


def test_the_subject_of_a_question_is_its_file_unless_the_row_says_it() -> None:
    row = {"query": "q", "choices": ["a", "b"], "gold": 1}
    (record,) = make_records(
        Row("x/anatomy_test.csv:3", 1, row), "s", SourceConfig(layout=RowLayout.choices, language="en")
    )
    assert getattr(record, "subject", None) == "anatomy"


def chat(number: int, answer: str) -> Conversation:
    return Conversation(f"id{number}", (Turn("user", f"q{number}"), Turn("assistant", answer)), "s", "ar")


def test_contrast_rejects_the_answer_of_another_conversation_and_says_which() -> None:
    chats = [chat(number, f"a{number}") for number in range(6)]
    for made, original in zip(contrast(chats, seed=3), chats, strict=True):
        assert (made.chosen, made.prompt) == (original.turns[-1].content, original.turns[:-1])
        assert made.rejected != made.chosen
        other = next(chat for chat in chats if chat.turns[-1].content == made.rejected)
        assert made.meta["rejected"] == f"answer of {other.id}"


def test_contrast_depends_on_its_seed_and_nothing_else() -> None:
    chats = [chat(number, f"a{number}") for number in range(30)]
    assert contrast(chats, seed=1) == contrast(chats, seed=1)
    assert contrast(chats, seed=1) != contrast(chats, seed=2)


def test_contrast_gives_nothing_where_all_answers_are_the_same() -> None:
    assert contrast([chat(1, "yes"), chat(2, "yes")], seed=0) == []
