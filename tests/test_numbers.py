"""No number of any job's config may be infinite, not a number, or, unless its field says so, below 0."""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from lisan.core.command_line.overrides import bare
from lisan.core.config import load
from lisan.core.errors import ConfigError
from lisan.recipes.jobs import JOBS
from lisan.recipes.run_pipeline import PipelineConfig

SCHEMAS = {**{name: job.config for name, job in JOBS.items()}, "run_pipeline": PipelineConfig}
NEEDED: dict[str, Any] = {
    "name": "t",
    "corpus": "corpus/t@v1",
    "tokenizer": "tokenizer/t@v1",
    "tokens": "tokens/t@v1",
    "model": {"path": "model/t@v1"},
    "report": "report/t@v1",
    "sources": ["a"],
    "base": "tokenizer/b@v1",
    "tokenizers": {"a": "tokenizer/t@v1"},
    "tasks": {"a": {"kind": "bits_per_byte", "sources": ["a"]}},
    "prompts": {"corpus": "corpus/t@v1"},
    "policy": "model/t@v1",
}
OWN: dict[str, dict[str, Any]] = {
    "build_corpus": {"sources": {"a": {"format": "jsonl", "path": ["/data/a.jsonl"], "language": "ar"}}},
    "expand_tokenizer": {"num_pieces": 512},
    "report_fertility": {"base": "a"},
    **{job: {"model": "model/t@v1"} for job in ("run_evals", "export_model", "promote_model")},
    "show_example": {"corpus": None, "tokenizer": None, "sources": []},
}


def list_numbers(schema: Any, key: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Yield key, type and whether it may be below 0 of every number of nested dataclasses."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        kind, name = bare(hints[field.name]), f"{key}{field.name}"
        if dataclasses.is_dataclass(kind):
            yield from list_numbers(kind, f"{name}.")
        elif kind in (int, float):
            yield name, kind, field.metadata.get("signed", False)


NUMBERS = list(
    {key: (job, key, *rest) for job, schema in SCHEMAS.items() for key, *rest in list_numbers(schema)}.values()
)
"Of every job, one that several jobs have once."


def load_with(job: str, key: str, value: Any) -> Any:
    """Load a config in which one field is set and the others are as usual."""
    known = {field.name for field in dataclasses.fields(SCHEMAS[job])}
    raw: dict[str, Any] = {name: given for name, given in NEEDED.items() if name in known}
    raw |= OWN.get(job, {})
    *parents, last = key.split(".")
    place = raw
    for parent in parents:
        place[parent] = dict(place.get(parent) or {})
        place = place[parent]
    if parents == ["model", "shape"]:
        shape = {"num_layers": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "num_kv_heads": 1}
        raw["model"] = {"shape": shape, "tokenizer": "tokenizer/t@v1"}
        place = shape
    place[last] = value
    return load(SCHEMAS[job], raw)


@pytest.mark.parametrize(("job", "key", "kind", "is_signed"), NUMBERS, ids=lambda value: str(value).split("'")[-1])
def test_no_number_is_below_0_infinite_or_none_at_all(job: str, key: str, kind: Any, is_signed: bool) -> None:
    impossible = [] if is_signed else [-1]
    if kind is float:
        impossible += [float("nan"), float("inf"), float("-inf")]
    for value in impossible:
        with pytest.raises(ConfigError, match=key.rpartition(".")[2]) as caught:
            load_with(job, key, value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("job", SCHEMAS)
def test_the_config_that_they_are_set_in_loads(job: str) -> None:
    load_with(job, "storage.root", "/there")


@pytest.mark.parametrize(("job", "key", "kind", "is_signed"), NUMBERS, ids=lambda value: str(value).split("'")[-1])
def test_a_ratio_is_at_most_1(job: str, key: str, kind: Any, is_signed: bool) -> None:
    if key.endswith("_ratio") and not key.startswith("gates."):
        with pytest.raises(ConfigError, match=key.rpartition(".")[2]):
            load_with(job, key, 1.5)


BEYOND = [
    ("train_cpt", "optim.beta1", 1.0),
    ("train_cpt", "optim.beta2", 1.5),
    ("train_cpt", "loop.step_rows", 0),
    ("train_cpt", "loop.micro_rows", 0),
    ("train_cpt", "mix.max_epochs", 0.0),
    ("train_cpt", "model.init_std", 0.0),
    ("train_cpt", "model.shape.num_layers", 0),
    ("train_cpt", "model.shape.num_heads", 0),
    ("train_cpt", "model.shape.rope_theta", 0.0),
    ("train_cpt", "cluster.cpus_per_worker", 0.0),
    ("train_dpo", "label_smoothing", 0.5),
    ("encode_tokens", "context_length", 0),
    ("run_evals", "context_length", 0),
    ("run_evals", "batch_rows", 0),
    ("sample_preferences", "sampling.top_p", 1.5),
    ("sample_preferences", "sampling.num_answers", 0),
    ("sample_preferences", "sampling.max_tokens", 0),
    ("sample_preferences", "engine.gpu_memory_utilization", 1.5),
    ("sample_preferences", "traffic.timeout_s", 0.0),
    ("sample_preferences", "traffic.concurrency", 0),
    ("show_example", "num_examples", 0),
    ("report_fertility", "max_bytes", 0),
]


@pytest.mark.parametrize(("job", "key", "value"), BEYOND)
def test_what_a_number_cannot_be_is_refused(job: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key.rpartition(".")[2]):
        load_with(job, key, value)
