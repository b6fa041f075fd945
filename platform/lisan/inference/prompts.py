"""What a model is asked: the prompts of a corpus.

In: conversations or preferences. Out: `Prompt`s, each with the good reply that the corpus knows. Always: the same prompts in
the same order for the same corpus and config; a prompt that a source has twice is asked once.
"""

import difflib
import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from lisan.core.artifact import Artifact
from lisan.core.errors import ConfigError, DataError
from lisan.corpus.reader import list_sources, list_splits, read_records
from lisan.inference.config import PromptsConfig
from lisan.records.records import Preference, Turn


@dataclass(frozen=True, slots=True)
class Prompt:
    id: str
    turns: tuple[Turn, ...]
    "Up to where the assistant speaks next."
    reply: str
    "The good reply; empty where none is known."
    source: str
    language: str


def check_prompts(config: PromptsConfig, corpus: Artifact) -> None:
    """Refuse sources and splits that the corpus does not have, naming the nearest."""
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
    """Return the prompts, source by source, and how many were left out because they were there before."""
    prompts: list[Prompt] = []
    num_repeated = 0
    for source in config.sources or list_sources(corpus, config.kind):
        records = read_records(corpus, config.kind, config.split, (source,))
        kept = records if config.limit is None else heapq.nsmallest(2 * config.limit, records, key=lambda one: one.id)
        every = [make_prompt(record) for record in kept]
        once = list(_drop_repeated(every))
        num_repeated += len(every) - len(once)
        prompts += once[: config.limit]
    return prompts, num_repeated


def make_prompt(record: Any) -> Prompt:
    """Cut a record before the assistant's last reply."""
    if isinstance(record, Preference):
        return Prompt(record.id, record.prompt, record.chosen, record.source, record.language)
    places = [place for place, turn in enumerate(record.turns) if turn.role == "assistant"]
    last = places[-1] if places else len(record.turns)
    reply = record.turns[last].content if places else ""
    return Prompt(record.id, record.turns[:last], reply, record.source, record.language)


def _drop_repeated(prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    seen: set[tuple[Turn, ...]] = set()
    for prompt in prompts:
        if prompt.turns not in seen:
            seen.add(prompt.turns)
            yield prompt
