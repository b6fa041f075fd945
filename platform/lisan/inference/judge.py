"""Judges: scores of answers, comparable only between answers to the same prompt.

Three kinds: similarity to the good reply of the corpus (chrF, 0 to 100), a language model with a rubric (1 to 10), a reward model
(any number). An answer that a judge cannot score is counted as unjudged; a judge that refuses every request ends the job.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Protocol

from lisan.core.parts import list_missing, part_path
from lisan.core.progress import ItemProgress
from lisan.core.stage import Run
from lisan.core.storage import Location
from lisan.inference.answer_parts import PartWork, work_in_parts
from lisan.inference.answers import AnsweredPrompt, add_scores, read_answers
from lisan.inference.chat_client import ChatClient, RefusedError, find_model_id
from lisan.inference.config import JudgeConfig, JudgeKind, TrafficConfig
from lisan.inference.prompts import Prompt
from lisan.records.records import Turn

CHRF_ORDER, CHRF_BETA = 6, 2
SCORE_LINE = re.compile(r"\W*score\W{1,5}(10|[1-9])(?:\s*/\s*10)?\W*", re.IGNORECASE)


class Judge(Protocol):
    """Scores answers to one prompt."""

    async def score(self, prompt: Prompt, texts: Sequence[str]) -> list[float | None]: ...

    def check(self) -> None:
        """Raise DataError when it has refused every request so far."""


def chrf(text: str, reference: str) -> float:
    """Return sentence chrF (Popović 2015), 0 to 100.

    F2 score (recall counts twice) of mean precision and mean recall over n-grams of 1 to 6 characters, without white space.
    Equals sacrebleu's numbers.
    """
    counts = [(_char_ngrams(text, n), _char_ngrams(reference, n)) for n in range(1, CHRF_ORDER + 1)]
    shared = [((first & second).total(), first.total(), second.total()) for first, second in counts if first and second]
    if not shared:
        return 0.0
    precision = fmean([match / ours for match, ours, _ in shared])
    recall = fmean([match / theirs for match, _, theirs in shared])
    if not precision + recall:
        return 0.0
    return 100 * (1 + CHRF_BETA**2) * precision * recall / (CHRF_BETA**2 * precision + recall)


def _char_ngrams(text: str, n: int) -> Counter[str]:
    joined = "".join(text.split())
    return Counter(joined[start : start + n] for start in range(len(joined) - n + 1))


class ReferenceJudge:
    """chrF with the good reply."""

    async def score(self, prompt: Prompt, texts: Sequence[str]) -> list[float | None]:
        return [chrf(text, prompt.reply) if prompt.reply else None for text in texts]

    def check(self) -> None:
        """Do nothing: it refuses nothing."""


@dataclass(frozen=True)
class EndpointJudge:
    """A language model that reads a rubric, the conversation and one answer per request."""

    client: ChatClient
    rubric: str
    max_tokens: int

    async def score(self, prompt: Prompt, texts: Sequence[str]) -> list[float | None]:
        return list(await asyncio.gather(*(self._score_one(prompt, text) for text in texts)))

    async def _score_one(self, prompt: Prompt, text: str) -> float | None:
        conversation = "\n".join(f"{turn.role}: {turn.content}" for turn in prompt.turns)
        question = f"# The conversation\n\n{conversation}\n\n# The reply to be judged\n\n{text}"
        try:
            [judgement, *_] = await self.client.ask(
                [Turn("system", self.rubric), Turn("user", question)],
                {"temperature": 0, "max_tokens": self.max_tokens},
            )
        except RefusedError:  # conversation and answer are longer than the judge's context
            return None
        return read_score(judgement.text)

    def check(self) -> None:
        self.client.check_answers()


class RewardJudge:
    """A reward model in this process."""

    def __init__(self, config: JudgeConfig, use_gpu: bool) -> None:
        from lisan.inference.reward_model import RewardModel

        self.model = RewardModel(config.model_path, config.batch_size, use_gpu)

    async def score(self, prompt: Prompt, texts: Sequence[str]) -> list[float | None]:
        return list(self.model.score(prompt.turns, texts))

    def check(self) -> None:
        """Do nothing: it refuses nothing."""


def read_score(judgement: str) -> float | None:
    """Return the score of the last line, None when that line holds anything else.

    "8/10" within the reasons does not count, nor does a range.
    """
    lines = [line for line in judgement.splitlines() if line.strip()]
    found = SCORE_LINE.fullmatch(lines[-1].strip()) if lines else None
    return float(found[1]) if found else None


def check_judge(config: JudgeConfig, traffic: TrafficConfig, use_gpu: bool) -> None:
    """Refuse a judge that cannot answer, before anything is sampled."""
    if config.kind is JudgeKind.endpoint:
        find_model_id(config.endpoint, traffic)
    if config.kind is JudgeKind.reward:
        from lisan.inference.reward_model import check_reward_model, find_device

        check_reward_model(Path(config.model_path))
        find_device(config.model_path, use_gpu)


def make_judge(config: JudgeConfig, traffic: TrafficConfig, use_gpu: bool) -> Judge:
    match config.kind:
        case JudgeKind.endpoint:
            client = ChatClient(config.endpoint, find_model_id(config.endpoint, traffic), traffic)
            return EndpointJudge(client, config.rubric, config.max_tokens)
        case JudgeKind.reward:
            return RewardJudge(config, use_gpu)
        case JudgeKind.reference:
            return ReferenceJudge()


async def judge_answers(judge: Judge, answered: AnsweredPrompt) -> AnsweredPrompt:
    """Score the answers without a fault; a single one has nothing to be compared with and gets no score."""
    texts = [answer.text for answer in answered.answers if not answer.fault]
    scores: list[float | None] = await judge.score(answered.prompt, texts) if len(texts) > 1 else [None] * len(texts)
    return add_scores(answered, scores)


@dataclass(frozen=True, kw_only=True)
class JudgeJob:
    """Generated parts, and the judge that scores them."""

    config: JudgeConfig
    traffic: TrafficConfig
    use_gpu: bool
    answers: Location
    "Holds the parts to judge."
    folder: Location
    "Takes the judged parts."


def judge_parts(job: JudgeJob, part_sizes: Sequence[int], run: Run) -> None:
    """Judge the parts, of these numbers of prompts, that are not judged yet, and write them to the job's folder."""
    missing = list_missing(job.folder, [part_path(index) for index in range(len(part_sizes))], "judged")
    if missing:
        progress = ItemProgress("judged", "prompts", sum(part_sizes[index] for index in missing), run.log_metrics)
        asyncio.run(_judge_parts(job, missing, progress))


async def _judge_parts(job: JudgeJob, missing: Sequence[int], progress: ItemProgress) -> None:
    judge = make_judge(job.config, job.traffic, job.use_gpu)

    async def score(answered: AnsweredPrompt) -> AnsweredPrompt:
        return await judge_answers(judge, answered)

    def read(index: int) -> list[AnsweredPrompt]:
        return read_answers(job.answers / part_path(index))

    await work_in_parts(job.folder, missing, PartWork(read, score, judge.check), progress)
