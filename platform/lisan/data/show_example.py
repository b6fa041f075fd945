"""Prints training examples for people: decoded text with trained tokens marked.

In: a `tokens` artifact, whose rows are shown with the documents packed into them; or a corpus and a tokenizer, whose
records are encoded as `encode_tokens` would. Out: lines on the terminal. Always: the text between the lines is the one that the
ids decode to, nothing left out; nothing is written. Run by `jobs/show_example.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

from rich.console import Console
from rich.text import Text

from lisan.core.artifact import Kind, Ref, Store
from lisan.core.errors import ConfigError, DataError
from lisan.core.references import fetch_named
from lisan.core.stage import check_reachable
from lisan.corpus.reader import list_sources, read_records
from lisan.data.config import ShowConfig
from lisan.data.encode_tokens import tokenizer_of
from lisan.data.examples import encode_records
from lisan.data.rows import RowBatch, RowReader
from lisan.records.kinds import RecordKind
from lisan.tokenizer.labels import IGNORE_INDEX, Example
from lisan.tokenizer.tokenizer import load_tokenizer, open_tokenizer

STYLES = {(True, False): "green", (True, True): "bold green", (False, False): "dim", (False, True): "dim magenta"}
"On a terminal, by whether tokens are trained and whether they are special."
BORDER = "bold cyan"
PARTS = {RecordKind.preferences: ("chosen", "rejected")}
"Names of the examples of one record, where there are several."


@dataclass(frozen=True, slots=True)
class Shown:
    """A row or a record, ready to be printed."""

    title: str
    examples: list[tuple[str, Example]]
    "Its documents, each with a title."
    padding: int = 0
    "Tokens of a row that no document fills."


@dataclass(frozen=True, slots=True)
class TextSpan:
    """Text of tokens that are alike."""

    text: str
    is_trained: bool
    is_special: bool


def show(config: ShowConfig, console: Console | None = None) -> None:
    """Print the chosen examples and count them."""
    console = console or Console(highlight=False, soft_wrap=True)
    check_reachable(config.storage, config.cluster)
    store = Store(config.storage.root)
    tokenizer, items = _open_tokens(config, store) if config.tokens else _open_corpus(config, store)
    shown = list(islice(items, config.num_examples))
    if not shown:
        raise DataError(f"first={config.first} skips every example of {config.tokens or config.corpus}; lower it")
    for item in shown:
        _print_item(console, tokenizer, item)
    examples = [example for item in shown for _, example in item.examples]
    console.print(Text(f"in all: {_count(examples, sum(item.padding for item in shown))}", BORDER))


def _open_tokens(config: ShowConfig, store: Store) -> tuple[Any, Iterator[Shown]]:
    artifact = store.open(Ref.parse(config.tokens or "", Kind.tokens))
    if "block_records" in artifact.facts:
        raise ConfigError(
            f"{artifact.ref} stores no rows, they are made while training runs; show their corpus with "
            f"corpus={artifact.config['corpus']} tokenizer={artifact.config['tokenizer']} kind={artifact.config['kind']}"
        )
    reader = RowReader(artifact)
    sources = _choose(config, reader.sources, str(artifact.ref))
    return open_tokenizer(tokenizer_of(artifact)), _in_turn([_rows(reader, source, config.first) for source in sources])


def _open_corpus(config: ShowConfig, store: Store) -> tuple[Any, Iterator[Shown]]:
    artifact = store.open(Ref.parse(config.corpus or "", Kind.corpus))
    kind, split = config.kind or RecordKind.conversations, config.split or "train"
    sources = _choose(config, tuple(list_sources(artifact, kind)), f"{kind} of {artifact.ref}")
    tokenizer = load_tokenizer(fetch_named(store, config.tokenizer or ""))

    def records(source: str) -> Iterator[Shown]:
        found = read_records(artifact, kind, split, (source,))
        for number, record in enumerate(islice(found, config.first, None), config.first):
            [item] = encode_records(tokenizer, [record])
            titles = PARTS.get(kind, ("",))
            yield Shown(f"record {number} of {source}, id {record.id}", list(zip(titles, item, strict=True)))

    return tokenizer, _in_turn([records(source) for source in sources])


def _choose(config: ShowConfig, known: Sequence[str], where: str) -> Sequence[str]:
    chosen = config.sources or known
    for source in chosen:
        if source not in known:
            raise DataError(f"{where} has no source {source}; sources: {', '.join(known) or 'none'}")
    if not chosen:
        raise DataError(f"there are no {where}; set kind to one that the corpus holds")
    return chosen


def _in_turn(sources: list[Iterator[Shown]]) -> Iterator[Shown]:
    """Yield the first of every source, then the second of every source, until all are at their end."""
    while sources:
        for source in tuple(sources):
            try:
                yield next(source)
            except StopIteration:
                sources.remove(source)


def _rows(reader: RowReader, source: str, first: int) -> Iterator[Shown]:
    for number in range(first, reader.num_rows[source]):
        rows = reader.read([reader.first_row(source) + number])
        yield Shown(f"row {number} of {source}", *_cut_row(rows))


def _cut_row(rows: RowBatch) -> tuple[list[tuple[str, Example]], int]:
    """Return the documents of the only row, with its padding."""
    lengths = rows.doc_lens[0]
    documents, start = [], 0
    for number, length in enumerate(lengths, 1):
        place = slice(start, start + length)
        example = Example(rows.input_ids[0, place], rows.labels[0, place])
        documents.append((f"document {number} of {len(lengths)}", example))
        start += length
    return documents, rows.input_ids.shape[1] - start


def _print_item(console: Console, tokenizer: Any, item: Shown) -> None:
    counts = _count([example for _, example in item.examples], item.padding)
    console.print(Text(f"=== {item.title}: {counts}", BORDER))
    for title, example in item.examples:
        if title:
            console.print(Text(f"--- {title}: {_count([example])}", BORDER))
        console.print(paint(find_runs(tokenizer, example), console.is_terminal))
    if item.padding:
        console.print(Text(f"--- {item.padding} tokens of padding", BORDER))
    console.print()


def _count(examples: Sequence[Example], padding: int = 0) -> str:
    tokens = sum(map(len, examples))
    trained = sum(int((example.labels != IGNORE_INDEX).sum()) for example in examples)
    filled = f", {padding:,} of padding" if padding else ""
    return f"{tokens:,} tokens, {trained:,} trained ({trained / max(1, tokens):.1%}){filled}"


def find_runs(tokenizer: Any, example: Example) -> list[TextSpan]:
    """Cut the decoded text where trained or special tokens begin and end.

    A character whose bytes lie on both sides of a cut goes to the later side. Prefixes are decoded rather than parts: a
    SentencePiece decoder drops the space that a part begins with.
    """
    special = set(tokenizer.added_tokens_decoder)
    ids = example.input_ids.tolist()
    kinds = zip((example.labels != IGNORE_INDEX).tolist(), (index in special for index in ids), strict=True)
    whole = tokenizer.decode(ids)
    runs, done, end = [], 0, 0
    for (is_trained, is_special), run in groupby(kinds):
        end += len(list(run))
        stop = len(whole) if end == len(ids) else len(tokenizer.decode(ids[:end]).rstrip("\ufffd"))
        runs.append(TextSpan(whole[done:stop], is_trained, is_special))
        done = stop
    return runs


def paint(runs: Sequence[TextSpan], in_colour: bool) -> Text:
    """Colour trained text, or put it between [[ and ]]; control characters become visible either way."""
    if in_colour:
        return Text.assemble(*((make_visible(run.text), STYLES[run.is_trained, run.is_special]) for run in runs))
    parts = ((is_trained, "".join(run.text for run in group)) for is_trained, group in groupby(runs, _is_trained))
    return Text(
        "".join(f"[[{make_visible(text)}]]" if is_trained else make_visible(text) for is_trained, text in parts)
    )


def _is_trained(run: TextSpan) -> bool:
    return run.is_trained


def make_visible(text: str) -> str:
    """Show line ends as ↵ and control characters, which a terminal would obey, as pictures or escapes."""
    return text.translate(_VISIBLE)


_VISIBLE = {
    **{code: chr(0x2400 + code) for code in range(0x20)},
    **{code: f"\\x{code:02x}" for code in range(0x7F, 0xA0)},
    ord("\t"): "\t",
    ord("\n"): "↵\n",
}
