"""The `sample_preferences` stage: samples a model's answers to the prompts of a corpus, judges them and pairs best with worst.

Writes a `corpus` artifact of preferences; `answers/` beside them holds every answer with its score. Sampling ends before judging
begins, so the model has left the GPUs when a reward model is loaded. Both passes write resumable parts. Every dropped prompt and
answer is counted by reason.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from lisan.core.artifact import Draft, Kind, Ref, Store
from lisan.core.credentials import hide_credentials
from lisan.core.integrity import hash_file
from lisan.core.references import local_path, parse_refs
from lisan.core.stage import Run, Stage
from lisan.core.storage import Location
from lisan.inference.chat_client import find_model_id
from lisan.inference.config import AutoscalingConfig, EndpointConfig, JudgeConfig, JudgeKind, ServeConfig, TrafficConfig
from lisan.inference.endpoint import find_free_port, serving
from lisan.inference.generate import GenerateJob, generate
from lisan.inference.judge import JudgeJob, check_judge, judge_parts
from lisan.inference.prompts import Prompt, check_prompts, read_prompts
from lisan.inference.served_model import find_served_model
from lisan.synth.config import SampleConfig
from lisan.synth.pairs import print_counts, write_pairs

POLICY = "policy"
"Model id of a policy that is served for the job."


def sample_preferences(config: SampleConfig, draft: Draft, run: Run) -> Mapping[str, Any]:
    corpus = draft.parent(Kind.corpus)
    prompts, num_repeated = read_prompts(config.prompts, corpus)
    repeated = f" ({num_repeated:,} more are repeated and left out)" if num_repeated else ""
    print(
        f"  {len(prompts):,} prompts of {corpus.ref}{repeated}, {config.sampling.num_answers} answers to each",
        flush=True,
    )
    job = _generate_job(config, prompts, draft)
    policy = _sample(config, job, run)
    judge_parts(_judge_job(config, draft), [len(part) for part in job.parts], run)
    facts = write_pairs(draft, len(job.parts), config.prompts.split, config.min_gap)
    known = corpus.facts["sources"]
    for source, counts in facts["sources"].items():
        counts |= {"language": known[source]["language"], "licence": known[source].get("licence", "")}
    print_counts(facts)
    return {
        **facts,
        "prompts": len(prompts),
        "repeated_prompts": num_repeated,
        "policy": policy,
        "judge": _describe_judge(config.judge, config.traffic),
    }


def _generate_job(config: SampleConfig, prompts: Sequence[Prompt], draft: Draft) -> GenerateJob:
    return GenerateJob(
        prompts=prompts,
        sampling=config.sampling,
        traffic=config.traffic,
        folder=draft.parts / "sampled",
        same_language=config.same_language,
    )


def _judge_job(config: SampleConfig, draft: Draft) -> JudgeJob:
    return JudgeJob(
        config=config.judge,
        traffic=config.traffic,
        use_gpu=config.cluster.use_gpu,
        answers=draft.parts / "sampled",
        folder=draft.parts / "judged",
    )


def _sample(config: SampleConfig, job: GenerateJob, run: Run) -> dict[str, Any]:
    """Generate the missing parts and return the facts about the policy; a complete job serves nothing."""
    missing = job.missing()
    if missing:
        with open_policy(config) as endpoint:
            generate(endpoint, job, missing, run)
    served = config.endpoint.model or (None if config.policy else find_model_id(config.endpoint, config.traffic))
    return {
        "name": config.policy or served,
        "url": hide_credentials(config.endpoint.url or ""),
        "sha256": _digest(config.policy),
    }


@contextmanager
def open_policy(config: SampleConfig) -> Iterator[EndpointConfig]:
    """Yield the endpoint of the policy, which is served for the length of the block unless it is running already."""
    if config.policy is None:
        yield config.endpoint
        return
    from lisan.cluster.ray import connect

    connect(config.cluster)
    with serving(
        replace(serve_config(config), port=find_free_port()), say=lambda line: print(f"  {line}", flush=True)
    ) as endpoint:
        yield endpoint.client_config


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


def _describe_judge(judge: JudgeConfig, traffic: TrafficConfig) -> dict[str, Any]:
    name = judge.path or "chrF"
    if judge.kind is JudgeKind.endpoint:
        name = find_model_id(judge.endpoint, traffic)
    url = hide_credentials(judge.endpoint.url or "")
    return {"kind": judge.kind.value, "name": name, "url": url, "sha256": _digest(judge.path)}


def _digest(name: str | None) -> str:
    """Return the hash of a local folder's files; empty for artifacts, whose manifests hold hashes, and for endpoints."""
    path = local_path(name or "")
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
        find_model_id(config.endpoint, config.traffic)
    else:
        find_served_model(serve_config(config))
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
