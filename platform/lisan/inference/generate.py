"""Generates answers of a model behind an OpenAI-compatible endpoint: several to each prompt, in resumable parts."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lisan.core.parts import list_missing, part_path
from lisan.core.progress import ItemProgress
from lisan.core.seed import derive_seed
from lisan.core.stage import Run
from lisan.core.storage import Location
from lisan.inference.answer_parts import PartWork, work_in_parts
from lisan.inference.answers import AnsweredPrompt, find_faults
from lisan.inference.chat_client import ChatClient, ChatReply, RefusedError, find_model_id
from lisan.inference.config import EndpointConfig, SamplingConfig, TrafficConfig
from lisan.inference.prompts import Prompt

PART_PROMPTS = 256
"Prompts of a part; a killed job loses two parts at most."


@dataclass(frozen=True, kw_only=True)
class GenerateJob:
    """Prompts, and how a model is asked for answers to them."""

    prompts: Sequence[Prompt]
    sampling: SamplingConfig
    traffic: TrafficConfig
    folder: Location
    "Takes one Parquet file of answered prompts per part."
    same_language: bool = False
    "Whether an answer in another script than the good reply's is a fault."

    @property
    def parts(self) -> list[Sequence[Prompt]]:
        return [self.prompts[start : start + PART_PROMPTS] for start in range(0, len(self.prompts), PART_PROMPTS)]

    def missing(self) -> list[int]:
        """Return the indices of the parts that are still to be generated, and print the number of finished ones."""
        return list_missing(self.folder, [part_path(index) for index in range(len(self.parts))], "sampled")


def generate(endpoint: EndpointConfig, job: GenerateJob, missing: Sequence[int], run: Run) -> None:
    """Generate the missing parts of a job and write them to its folder.

    Request seeds depend on the prompt and the config only, so two runs of one config send the same requests. Raises
    ServingError for an endpoint that does not work and DataError when it refuses every prompt.
    """
    asyncio.run(_generate(endpoint, job, missing, run))


async def _generate(endpoint: EndpointConfig, job: GenerateJob, missing: Sequence[int], run: Run) -> None:
    client = ChatClient(endpoint, find_model_id(endpoint, job.traffic), job.traffic)
    parts = job.parts

    async def answer(prompt: Prompt) -> AnsweredPrompt:
        return await generate_answers(client, prompt, job.sampling, job.same_language)

    progress = ItemProgress("sampled", "prompts", sum(len(parts[index]) for index in missing), run.log_metrics)
    work = PartWork(parts.__getitem__, answer, client.check_answers)
    await work_in_parts(job.folder, missing, work, progress)


async def generate_answers(
    client: ChatClient, prompt: Prompt, config: SamplingConfig, same_language: bool
) -> AnsweredPrompt:
    """Send requests until there are `num_answers`: some endpoints return one answer, whatever `n` is."""
    replies: list[ChatReply] = []
    try:
        while len(replies) < config.num_answers:
            seed = derive_seed(config.seed, prompt.id, len(replies)) % 2**31
            replies += await client.ask(
                prompt.turns, sampling_parameters(config, config.num_answers - len(replies), seed)
            )
    except RefusedError as error:
        return AnsweredPrompt(prompt, (), str(error))
    return AnsweredPrompt(prompt, find_faults(replies[: config.num_answers], prompt, same_language))


def sampling_parameters(config: SamplingConfig, num_answers: int, seed: int) -> dict[str, Any]:
    """Return the sampling fields of a chat completion request."""
    extra = {} if config.top_k is None else {"extra_body": {"top_k": config.top_k}}
    return {
        "n": num_answers,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_tokens,
        "seed": seed,
        **extra,
    }
