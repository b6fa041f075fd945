"""Judges: what an answer is worth, as a number that only compares answers to the same prompt.

In: a prompt with its answers. Out: the same with scores. Always: an answer that a judge cannot score stays without one, and
is counted; a judge that refuses whatever it is shown ends the job. Three of them: likeness to the good reply that the corpus
knows (chrF, 0 to 100), a language model with a rubric (1 to 10), a reward model (any number).
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lisan.inference.chrf import chrf
from lisan.inference.client import Chat, RefusedError, find_model
from lisan.inference.config import JudgeConfig, JudgeKind, TrafficConfig
from lisan.inference.generate import Asked, give_scores
from lisan.inference.prompts import Prompt
from lisan.records.records import Turn

SCORE_LINE = re.compile(r"\W*score\W{1,5}(10|[1-9])(?:\s*/\s*10)?\W*", re.IGNORECASE)


class Judge(Protocol):
    """Scores answers to one prompt."""

    async def score(self, prompt: Prompt, texts: Sequence[str]) -> list[float | None]: ...

    def check(self) -> None:
        """Raise DataError when it has refused all that it was shown so far."""


class ReferenceJudge:
    """Likeness to the good reply."""

    async def score(self, prompt: Prompt, texts: Sequence[str]) -> list[float | None]:
        return [chrf(text, prompt.reply) if prompt.reply else None for text in texts]

    def check(self) -> None:
        """It refuses nothing."""


@dataclass(frozen=True)
class EndpointJudge:
    """A language model that is shown a rubric, the conversation and one answer at a time."""

    chat: Chat
    rubric: str
    max_tokens: int

    async def score(self, prompt: Prompt, texts: Sequence[str]) -> list[float | None]:
        return list(await asyncio.gather(*(self._score_one(prompt, text) for text in texts)))

    async def _score_one(self, prompt: Prompt, text: str) -> float | None:
        said = "\n".join(f"{turn.role}: {turn.content}" for turn in prompt.turns)
        shown = f"# The conversation\n\n{said}\n\n# The reply to be judged\n\n{text}"
        try:
            [(judgement, _), *_] = await self.chat.ask(
                [Turn("system", self.rubric), Turn("user", shown)], {"temperature": 0, "max_tokens": self.max_tokens}
            )
        except RefusedError:  # the conversation with its answer is longer than the judge reads
            return None
        return read_score(judgement)

    def check(self) -> None:
        self.chat.check_answers()


class RewardJudge:
    """A reward model in this process."""

    def __init__(self, config: JudgeConfig, use_gpu: bool) -> None:
        from lisan.inference.reward_model import RewardModel

        self.model = RewardModel(config.place, config.batch_size, use_gpu)

    async def score(self, prompt: Prompt, texts: Sequence[str]) -> list[float | None]:
        return list(self.model.score(prompt.turns, texts))

    def check(self) -> None:
        """It refuses nothing."""


def read_score(judgement: str) -> float | None:
    """Return the number of the last line, None when that line is anything else.

    "8/10" somewhere in the reasons is no verdict, and neither is a range.
    """
    lines = [line for line in judgement.splitlines() if line.strip()]
    found = SCORE_LINE.fullmatch(lines[-1].strip()) if lines else None
    return float(found[1]) if found else None


def check_judge(config: JudgeConfig, traffic: TrafficConfig, use_gpu: bool) -> None:
    """Refuse a judge that will not answer, before anything is sampled."""
    if config.kind is JudgeKind.endpoint:
        find_model(config.endpoint, traffic)
    if config.kind is JudgeKind.reward:
        from lisan.inference.reward_model import check_reward_model, find_device

        check_reward_model(Path(config.place))
        find_device(config.place, use_gpu)


def make_judge(config: JudgeConfig, traffic: TrafficConfig, use_gpu: bool) -> Judge:
    match config.kind:
        case JudgeKind.endpoint:
            chat = Chat(config.endpoint, find_model(config.endpoint, traffic), traffic)
            return EndpointJudge(chat, config.rubric, config.max_tokens)
        case JudgeKind.reward:
            return RewardJudge(config, use_gpu)
        case JudgeKind.reference:
            return ReferenceJudge()


async def judge_answers(judge: Judge, asked: Asked) -> Asked:
    """Score the answers that have no fault; one that stands alone has nothing to be compared with."""
    texts = [answer.text for answer in asked.answers if not answer.fault]
    scores: list[float | None] = await judge.score(asked.prompt, texts) if len(texts) > 1 else [None] * len(texts)
    return give_scores(asked, scores)
