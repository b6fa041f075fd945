"""Answers of a model: several to each prompt, and what is wrong with them before anybody judges.

In: prompts and an endpoint. Out: `Asked`, a prompt with its answers, and the Arrow form in which it lies on storage. Always:
the seed of a request comes from the prompt, so that no two runs of one config ask for anything else; an answer that cannot
be judged says why.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lisan.core.seed import derive_seed
from lisan.core.storage import Location
from lisan.corpus.clean.language import fits_script, guess_language
from lisan.inference.client import Chat, RefusedError
from lisan.inference.config import SamplingConfig
from lisan.inference.prompts import Prompt
from lisan.records.records import Turn


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    fault: str = ""
    "Why it is not judged: cut, empty, repeated, wrong_language; unjudged when the judge could not tell, or has nothing to compare."
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    prompt: Prompt
    answers: tuple[Answer, ...]
    refusal: str = ""
    "What the endpoint said instead of answering."


_TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string())]))
_ANSWERS = pa.list_(pa.struct([("text", pa.large_string()), ("fault", pa.string()), ("score", pa.float64())]))
_TEXTS = [("reply", pa.large_string()), ("source", pa.string()), ("language", pa.string())]
SCHEMA = pa.schema([("id", pa.string()), ("turns", _TURNS), *_TEXTS, ("answers", _ANSWERS), ("refusal", pa.string())])


async def sample_answers(chat: Chat, prompt: Prompt, config: SamplingConfig, same_language: bool) -> Asked:
    """Ask until there are enough answers: some endpoints give one, however many they are asked for."""
    found: list[tuple[str, bool]] = []
    try:
        while len(found) < config.num_answers:
            seed = derive_seed(config.seed, prompt.id, len(found)) % 2**31
            found += await chat.ask(prompt.turns, settings_of(config, config.num_answers - len(found), seed))
    except RefusedError as error:
        return Asked(prompt, (), str(error))
    return Asked(prompt, find_faults(found[: config.num_answers], prompt, same_language))


def settings_of(config: SamplingConfig, num_answers: int, seed: int) -> dict[str, Any]:
    """Return what a request says of sampling."""
    more = {} if config.top_k is None else {"extra_body": {"top_k": config.top_k}}
    return {
        "n": num_answers,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_tokens,
        "seed": seed,
        **more,
    }


def find_faults(found: Sequence[tuple[str, bool]], prompt: Prompt, same_language: bool) -> tuple[Answer, ...]:
    """Mark the answers that no pair may be made of."""
    wanted = guess_language(prompt.reply) if prompt.reply else prompt.language
    seen: set[str] = set()
    answers: list[Answer] = []
    for text, is_cut in found:
        body = text.strip()
        fault = "cut" if is_cut else "empty" if not body else "repeated" if body in seen else ""
        if same_language and not fault and wanted != "und" and not fits_script(body, wanted):
            fault = "wrong_language"
        seen.add(body)
        answers.append(Answer(body, fault))
    return tuple(answers)


def give_scores(asked: Asked, scores: Iterable[float | None]) -> Asked:
    """Return the answers with the scores of those without a fault, in order; None or no finite number: the judge could not tell."""
    left = (score if score is not None and math.isfinite(score) else None for score in scores)
    judged = tuple(
        answer if answer.fault else replace(answer, score=score, fault="" if score is not None else "unjudged")
        for answer in asked.answers
        for score in (None if answer.fault else next(left),)
    )
    return replace(asked, answers=judged)


def write_asked(place: Location, asked: Iterable[Asked]) -> None:
    rows = [
        {**asdict(one.prompt), "answers": [asdict(answer) for answer in one.answers], "refusal": one.refusal}
        for one in asked
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), sink, compression="zstd")
    place.write_bytes(sink.getvalue().to_pybytes())


def read_asked(place: Location) -> list[Asked]:
    rows = pq.read_table(place.full_path, filesystem=place.file_system).to_pylist()
    return [_read_row(row) for row in rows]


def _read_row(row: dict[str, Any]) -> Asked:
    turns = tuple(Turn(**turn) for turn in row["turns"])
    prompt = Prompt(row["id"], turns, row["reply"], row["source"], row["language"])
    return Asked(prompt, tuple(Answer(**answer) for answer in row["answers"]), row["refusal"])
