"""Turns a row into records: one function for each layout. Layouts other than documents are in `exchanges`.

Ids depend only on the file and the position in it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from lisan.core.seed import stream
from lisan.corpus.config import RowLayout, SourceConfig
from lisan.corpus.layouts import exchanges
from lisan.corpus.layouts.fields import Fields, RowParser, filled, required_text
from lisan.corpus.sources.lines import BadRowError, DroppedRowError, Row
from lisan.records.kinds import RecordKind
from lisan.records.records import CLASSES, Conversation, Preference, Record, record_id


def make_records(row: Row, name: str, source: SourceConfig, notes: Counter[str] | None = None) -> Iterator[Record]:
    """Yield the records of a row; `notes` counts omissions.

    Several of one row share `meta["pair"]`, and so fall in one split. So do a conversation and the preference that
    another source makes of it (`contrast`), or sources that read two columns of one file: none validates on the other.
    """
    kind, parse = LAYOUTS[source.layout]
    first = record_id(name, row.key)
    parsed = list(parse(row.value, source))
    if notes is not None:
        notes.update(note for fields in parsed for note in fields.get("notes", ()))
    found = [{key: fields[key] for key in fields if key != "notes"} for fields in parsed if fields.keys() != {"notes"}]
    if not found:
        raise DroppedRowError("no answer")
    for index, fields in enumerate(found):
        identity = first if index == 0 else record_id(name, f"{row.key}#{index}")
        fields.setdefault("language", source.language)
        if len(found) > 1 or kind is RecordKind.conversations:
            fields["meta"] = {**fields.get("meta", {}), "pair": record_id("", row.key)}
        if kind is RecordKind.questions and not fields["subject"]:
            fields["subject"] = _SPLIT_IN_NAME.sub("", row.key.rpartition(":")[0].rpartition("/")[2])
        yield CLASSES[kind](id=identity, source=name, **fields)


_SPLIT_IN_NAME = re.compile(r"(?:_(?:test|dev|val|train))?\..*\Z")
"`anatomy_test.csv` asks about anatomy."


def contrast(conversations: Sequence[Conversation], seed: int) -> list[Preference]:
    """Make preferences of conversations: chosen is the last answer, rejected the answer of another one in the list.

    The partner is drawn by `seed` and the conversation's id, passing over equal answers; meta names it.
    """
    made = []
    for conversation in conversations:
        answer = conversation.turns[-1].content
        start = stream(seed, "contrast", conversation.id).randrange(len(conversations))
        order = (conversations[(start + step) % len(conversations)] for step in range(len(conversations)))
        other = next((partner for partner in order if partner.turns[-1].content != answer), None)
        if other is not None:
            made.append(
                Preference(
                    id=conversation.id,
                    prompt=conversation.turns[:-1],
                    chosen=answer,
                    rejected=other.turns[-1].content,
                    source=conversation.source,
                    language=conversation.language,
                    meta={**conversation.meta, "rejected": f"answer of {other.id}"},
                )
            )
    return made


def parse_text(row: object, source: SourceConfig) -> Iterable[Fields]:
    return [{"text": required_text(row, source)}]


_FRONT_MATTER = re.compile(r"\A\s*---\n(.*?)\n---\s*\n", re.DOTALL)
_TITLE = re.compile(r"^title:\s*\"?(.*?)\"?\s*$", re.MULTILINE)


def parse_markdown(row: object, source: SourceConfig) -> Iterable[Fields]:
    """Take YAML front matter off; its title goes to meta, without emphasis marks."""
    text = required_text(row, source)
    matter = _FRONT_MATTER.match(text)
    if matter is None:
        return [{"text": text}]
    body = text[matter.end() :].strip()
    if not body:
        raise DroppedRowError("empty text")
    title = _TITLE.search(matter[1])
    return [{"text": body, "meta": {"title": title[1].replace("*", "")} if title else {}}]


_GUTENBERG_START = re.compile(r"^\s*\*\*\* ?START OF TH(?:E|IS) PROJECT GUTENBERG.*\n", re.MULTILINE)
_GUTENBERG_END = re.compile(r"^\s*(?:\*\*\* ?END OF TH|End of (?:the )?Project Gutenberg)", re.MULTILINE)


def parse_gutenberg(row: object, source: SourceConfig) -> Iterable[Fields]:
    """Keep the text between the START and END marks."""
    text = required_text(row, source)
    start = _GUTENBERG_START.search(text)
    if start is None:
        raise BadRowError("no line '*** START OF THIS PROJECT GUTENBERG EBOOK'")
    end = _GUTENBERG_END.search(text, start.end())
    return [{"text": text[start.end() : end.start() if end else len(text)].strip()}]


def parse_headline(row: object, source: SourceConfig) -> Iterable[Fields]:
    """Put the headline (or summary) above the article."""
    text, headline = filled(row, source, "text", "headline")
    return [{"text": f"{headline.strip()}\n\n{text.strip()}"}]


LANGUAGE_NAMES = {"en": "English", "ar": "العربية", "ary": "الدارجة المغربية", "arz": "المصرية", "ary-Latn": "Darija"}
PAIR_FORMS = ("{a}\n{b}", "{a_name}: {a}\n{b_name}: {b}", "{a}\n\n{b_name}: {b}", "{a} = {b}")
"Ways to write a text and its translation; four, so that none of them becomes the only cue for translating."


def parse_parallel(row: object, source: SourceConfig) -> Iterable[Fields]:
    """Write both sides into one document, once in each direction, in a form drawn by the content."""
    first, second = (side.strip() for side in filled(row, source, "first", "second"))
    if first == second:
        raise DroppedRowError("same sides")
    sides = ((source.language, first), (source.pair_language, second))
    rng = stream(0, "pair form", first, second)
    for (a_label, a), (b_label, b) in (sides, sides[::-1]):
        form = rng.choice(PAIR_FORMS)
        names = {"a_name": LANGUAGE_NAMES.get(a_label, a_label), "b_name": LANGUAGE_NAMES.get(b_label, b_label)}
        yield {"text": form.format(a=a, b=b, **names), "language": f"{source.language}-{source.pair_language}"}


LAYOUTS: dict[RowLayout, tuple[RecordKind, RowParser]] = {
    RowLayout.text: (RecordKind.documents, parse_text),
    RowLayout.markdown: (RecordKind.documents, parse_markdown),
    RowLayout.gutenberg: (RecordKind.documents, parse_gutenberg),
    RowLayout.headline: (RecordKind.documents, parse_headline),
    RowLayout.parallel: (RecordKind.documents, parse_parallel),
    RowLayout.prompt: (RecordKind.conversations, exchanges.parse_prompt),
    RowLayout.alpaca: (RecordKind.conversations, exchanges.parse_alpaca),
    RowLayout.seed_task: (RecordKind.conversations, exchanges.parse_seed_task),
    RowLayout.messages: (RecordKind.conversations, exchanges.parse_messages),
    RowLayout.tree: (RecordKind.conversations, exchanges.parse_tree),
    RowLayout.squad: (RecordKind.conversations, exchanges.parse_squad),
    RowLayout.preference: (RecordKind.preferences, exchanges.parse_preference),
    RowLayout.dialogue_preference: (RecordKind.preferences, exchanges.parse_dialogue_preference),
    RowLayout.letters: (RecordKind.questions, exchanges.parse_letters),
    RowLayout.arabicmmlu: (RecordKind.questions, exchanges.parse_arabicmmlu),
    RowLayout.true_false: (RecordKind.questions, exchanges.parse_true_false),
    RowLayout.choices: (RecordKind.questions, exchanges.parse_choices),
    RowLayout.belebele: (RecordKind.questions, exchanges.parse_belebele),
}
"Kind of record and parser of each layout."
