"""Runs the stages of a recipe in order and skips those whose artifact exists.

Each step has the choices and overrides of its job's command line. All steps are composed before the first one runs; each is
checked against the artifacts it reads when its turn comes.
"""

import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lisan.core.config import SIGNED, compose
from lisan.core.errors import ConfigError
from lisan.core.identity import NOT_IDENTITY, to_plain
from lisan.core.stage import ClusterConfig, StorageConfig, TrackingConfig
from lisan.core.torchrun import check_alone, first_reports
from lisan.recipes.comparison import ComparisonConfig, ComparisonJob, compare
from lisan.recipes.jobs import JOBS


@dataclass(frozen=True, kw_only=True, slots=True)
class StepConfig:
    job: str
    "Name of a job: build_corpus, train_cpt, ..."
    use: dict[str, str] = field(default_factory=dict)
    "Group choices, as on the job's command line: {model: tiny, cluster: cpu2}."
    set: dict[str, Any] = field(default_factory=dict, metadata=SIGNED)
    "Fields of the job's config."


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineConfig:
    steps: dict[str, StepConfig] = field(default_factory=dict)
    "Steps in the order in which they run."
    only: tuple[str, ...] = ()
    "Names of the steps to run; empty runs all."
    storage: StorageConfig = field(default_factory=StorageConfig, metadata=NOT_IDENTITY)
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata=NOT_IDENTITY)
    cluster: ClusterConfig | None = field(default=None, metadata=NOT_IDENTITY)
    "Cluster of every step; null keeps each step's own."
    name: str = "recipe"
    "Name of the comparison."
    comparison: ComparisonConfig | None = None
    "Comparison of the recipe's models at its end; null for none."

    def __post_init__(self) -> None:
        unknown = [name for name in self.only if name not in self.steps]
        if unknown:
            raise ConfigError(f"only names {unknown[0]}, the recipe has {', '.join(self.steps)}")
        rows = self.comparison.rows if self.comparison else {}
        for name in [step for row in rows.values() for step in (row.train, row.report)]:
            if name not in self.steps:
                raise ConfigError(f"comparison.rows names the step {name}, the recipe has {', '.join(self.steps)}")
        for name, step in self.steps.items():
            if step.job not in JOBS:
                raise ConfigError(f"steps.{name}.job must be one of {', '.join(JOBS)}, got {step.job!r}")


def run_pipeline(config: PipelineConfig, conf_dir: Path) -> dict[str, Any]:
    """Run the steps in order and return their results by name."""
    with first_reports():
        check_alone("run_pipeline")
    if not config.steps:
        raise ConfigError("run_pipeline needs a recipe: add recipe=demo, or one of your own from conf/recipe")
    chosen = config.only or tuple(config.steps)
    composed = {name: compose_step(name, config, conf_dir) for name in chosen}
    results: dict[str, Any] = {}
    start = time.monotonic()
    for number, (name, step) in enumerate(composed.items(), 1):
        print(f"[{number}/{len(composed)}] {name} ({time.monotonic() - start:.0f} s)", flush=True)
        results[name] = JOBS[config.steps[name].job].run(step)
    if config.comparison is not None and not config.only:
        job = ComparisonJob(
            name=config.name,
            comparison=config.comparison,
            storage=config.storage,
            tracking=config.tracking,
            cluster=config.cluster or ClusterConfig(),
        )
        summary = compare(job, results)
        print(f"{config.name}: ok {summary}", flush=True)
    return results


def compose_step(name: str, config: PipelineConfig, conf_dir: Path) -> Any:
    """Compose a step's config as its own job does, with the pipeline's storage, tracking and cluster."""
    step = config.steps[name]
    schema = JOBS[step.job].config
    own = {"storage": config.storage, "tracking": config.tracking, "cluster": config.cluster}
    known = {field.name for field in fields(schema)}
    shared = {key: to_plain(value) for key, value in own.items() if value is not None and key in known}
    try:
        return compose(
            conf_dir,
            step.job,
            schema,
            [f"{group}={choice}" for group, choice in step.use.items()],
            {**step.set, **shared},
        )
    except ConfigError as error:
        raise ConfigError(f"steps.{name}: {error}") from error
