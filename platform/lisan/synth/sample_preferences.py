"""The `sample_preferences` stage: a model's own answers, judged, to a corpus of preferences.

In: prompts of a corpus, a model (behind an endpoint, or served by vLLM for as long as the job takes) and a judge. Out: a
`corpus` artifact of preferences, best answer against worst, which encode_tokens takes like any other; every answer with its
score lies beside them in `answers/`. Always: answers are kept in parts, sampled first and judged then, so that a killed job
goes on and the model has left the GPUs when a judge comes; every prompt and answer that is left out is counted by reason.
"""

import asyncio
import hashlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from lisan.core.artifact import Draft, Kind, Ref, Store
from lisan.core.credentials import hide_credentials
from lisan.core.integrity import hash_file
from lisan.core.parts import list_missing, part_path
from lisan.core.progress import ItemProgress
from lisan.core.references import local_path, parse_refs
from lisan.core.stage import Run, Stage
from lisan.core.storage import Location
from lisan.inference.client import Chat, find_model
from lisan.inference.config import AutoscalingConfig, EndpointConfig, JudgeConfig, JudgeKind, ServeConfig, TrafficConfig
from lisan.inference.endpoint import find_model as find_folder
from lisan.inference.endpoint import start
from lisan.inference.generate import Asked, read_asked, sample_answers
from lisan.inference.judge import check_judge, judge_answers, make_judge
from lisan.inference.prompts import Prompt, check_prompts, read_prompts
from lisan.synth.config import SampleConfig
from lisan.synth.pairs import say_counts, write_pairs
from lisan.synth.parts import Work, work_in_parts

PART_PROMPTS = 256
"What a killed job loses at most, twice."
POLICY = "policy"
"Name of a model that is served for the job."


def sample_preferences(config: SampleConfig, draft: Draft, run: Run) -> Mapping[str, Any]:
    corpus = draft.parent(Kind.corpus)
    prompts, num_repeated = read_prompts(config.prompts, corpus)
    parts = [prompts[start : start + PART_PROMPTS] for start in range(0, len(prompts), PART_PROMPTS)]
    repeated = f" ({num_repeated:,} more are repeated and left out)" if num_repeated else ""
    print(
        f"  {len(prompts):,} prompts of {corpus.ref}{repeated}, {config.sampling.num_answers} answers to each",
        flush=True,
    )
    policy = _sample(config, parts, draft.parts / "sampled", run)
    _judge(config, parts, draft.parts, run)
    facts = write_pairs(draft, len(parts), config.prompts.split, config.min_gap)
    known = corpus.facts["sources"]
    for source, counts in facts["sources"].items():
        counts |= {"language": known[source]["language"], "licence": known[source].get("licence", "")}
    say_counts(facts)
    return {
        **facts,
        "prompts": len(prompts),
        "repeated_prompts": num_repeated,
        "policy": policy,
        "judge": _describe_judge(config.judge, config.traffic),
    }


def _sample(config: SampleConfig, parts: Sequence[Sequence[Prompt]], folder: Location, run: Run) -> dict[str, Any]:
    """Sample what is missing; return what answered. Nothing is served when nothing is missing."""
    missing = list_missing(folder, [part_path(index) for index in range(len(parts))], "sampled")
    if missing:
        progress = ItemProgress("sampled", "prompts", _count(parts, missing), run.log_metrics)
        with open_policy(config) as endpoint:
            asyncio.run(_sample_from(endpoint, config, parts, folder, missing, progress))
    served = config.endpoint.model or (None if config.policy else find_model(config.endpoint, config.traffic))
    return {
        "name": config.policy or served,
        "url": hide_credentials(config.endpoint.url or ""),
        "sha256": _digest(config.policy),
    }


async def _sample_from(
    endpoint: EndpointConfig,
    config: SampleConfig,
    parts: Sequence[Sequence[Prompt]],
    folder: Location,
    missing: Sequence[int],
    progress: ItemProgress,
) -> None:
    chat = Chat(endpoint, find_model(endpoint, config.traffic), config.traffic)

    async def sample(prompt: Any) -> Asked:
        return await sample_answers(chat, prompt, config.sampling, config.same_language)

    work = Work(lambda index: parts[index], sample, chat.check_answers)
    await work_in_parts(folder, missing, work, progress)


@contextmanager
def open_policy(config: SampleConfig) -> Iterator[EndpointConfig]:
    """Give the endpoint that is asked; a model of ours is served by Ray Serve and vLLM until the block ends."""
    if config.policy is None:
        yield config.endpoint
        return
    from lisan.cluster.ray import connect

    connect(config.cluster)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = start(replace(serve_config(config), port=port), say=lambda line: print(f"  {line}", flush=True))
    try:
        yield EndpointConfig(url=running.url, model=running.model.name)
    finally:
        running.stop()


def serve_config(config: SampleConfig) -> ServeConfig:
    cluster = config.cluster
    replicas = max(1, cluster.num_workers // config.engine.tensor_parallel_size)
    return ServeConfig(
        model=POLICY,
        path=config.policy,
        use_gpu=True if cluster.use_gpu else None,
        max_queued_requests=max(512, config.traffic.concurrency),
        engine=config.engine,
        autoscaling=AutoscalingConfig(min_replicas=replicas, max_replicas=replicas),
        storage=config.storage,
        tracking=config.tracking,
    )


def _judge(config: SampleConfig, parts: Sequence[Sequence[Prompt]], place: Location, run: Run) -> None:
    missing = list_missing(place / "judged", [part_path(index) for index in range(len(parts))], "judged")
    if not missing:
        return

    async def judge_all() -> None:
        judge = make_judge(config.judge, config.traffic, config.cluster.use_gpu)

        async def score(asked: Any) -> Asked:
            return await judge_answers(judge, asked)

        def read(index: int) -> list[Asked]:
            return read_asked(place / "sampled" / part_path(index))

        work = Work(read, score, judge.check)
        progress = ItemProgress("judged", "prompts", _count(parts, missing), run.log_metrics)
        await work_in_parts(place / "judged", missing, work, progress)

    asyncio.run(judge_all())


def _count(parts: Sequence[Sequence[Prompt]], indices: Sequence[int]) -> int:
    return sum(len(parts[index]) for index in indices)


def _describe_judge(judge: JudgeConfig, traffic: TrafficConfig) -> dict[str, Any]:
    name = judge.path or "chrF"
    if judge.kind is JudgeKind.endpoint:
        name = find_model(judge.endpoint, traffic)
    url = hide_credentials(judge.endpoint.url or "")
    return {"kind": judge.kind.value, "name": name, "url": url, "sha256": _digest(judge.path)}


def _digest(place: str | None) -> str:
    """Hash the files of a local folder; an artifact's are in its own manifest, those of an endpoint are not known."""
    path = local_path(place or "")
    if path is None or not path.is_dir():
        return ""
    folder = Location(str(path.resolve()))
    lines = [f"{file.relative_to(folder)} {hash_file(file)}" for file, _ in folder.walk()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _parents(config: SampleConfig) -> tuple[Ref, ...]:
    return (Ref.parse(config.prompts.corpus, Kind.corpus), *parse_refs(config.policy, kind=Kind.model))


def _check(config: SampleConfig, store: Store) -> None:
    check_prompts(config.prompts, store.open(Ref.parse(config.prompts.corpus, Kind.corpus)))
    if config.policy is None:
        find_model(config.endpoint, config.traffic)
    else:
        find_folder(serve_config(config))
    check_judge(config.judge, config.traffic, config.cluster.use_gpu)


SAMPLE = Stage(
    "sample_preferences",
    Kind.corpus,
    SampleConfig,
    _parents,
    sample_preferences,
    _check,
    inputs=lambda config: (config.policy, config.judge.path),
)
