"""Reads prompts, each with its good reply, from the conversations or preferences of a corpus.

The same corpus and config give the same prompts in the same order. A prompt that a source holds twice is read once.
"""

import difflib
import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lisan.core.artifact import Artifact
from lisan.core.errors import ConfigError, DataError
from lisan.corpus.reader import list_sources, list_splits, read_records
from lisan.inference.config import PromptsConfig
from lisan.records.records import Conversation, Preference, Turn


@dataclass(frozen=True, slots=True)
class Prompt:
    id: str
    turns: tuple[Turn, ...]
    "Ends before the assistant's turn."
    reply: str
    "Good reply of the corpus; empty when it has none."
    source: str
    language: str


def check_prompts(config: PromptsConfig, corpus: Artifact) -> None:
    """Refuse sources and splits that the corpus does not have; the error names the nearest."""
    known = list_sources(corpus, config.kind)
    if not known:
        raise DataError(f"{corpus.ref} holds no {config.kind} to take prompts from; choose another prompts.kind")
    for name in config.sources or known:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise ConfigError(
                f"prompts.sources names {name}, which {corpus.ref} does not have as {config.kind}; {hint}"
            )
        splits = list_splits(corpus, config.kind, name)
        if config.split not in splits:
            raise ConfigError(f"prompts.split={config.split} is no split of {name}; there are {', '.join(splits)}")


def read_prompts(config: PromptsConfig, corpus: Artifact) -> tuple[list[Prompt], int]:
    """Return the prompts, source by source, and the number of repeated ones that were left out."""
    prompts: list[Prompt] = []
    num_repeated = 0
    for source in config.sources or list_sources(corpus, config.kind):
        records = read_records(corpus, config.kind, config.split, (source,))
        kept = records if config.limit is None else heapq.nsmallest(2 * config.limit, records, key=lambda one: one.id)
        found = [make_prompt(record) for record in kept]
        distinct = list(_drop_repeated(found))
        num_repeated += len(found) - len(distinct)
        prompts += distinct[: config.limit]
    return prompts, num_repeated


def make_prompt(record: Conversation | Preference) -> Prompt:
    """Cut a record before the assistant's last reply."""
    if isinstance(record, Preference):
        return Prompt(record.id, record.prompt, record.chosen, record.source, record.language)
    assistant = [index for index, turn in enumerate(record.turns) if turn.role == "assistant"]
    last = assistant[-1] if assistant else len(record.turns)
    reply = record.turns[last].content if assistant else ""
    return Prompt(record.id, record.turns[:last], reply, record.source, record.language)


def _drop_repeated(prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    seen: set[tuple[Turn, ...]] = set()
    for prompt in prompts:
        if prompt.turns not in seen:
            seen.add(prompt.turns)
            yield prompt
