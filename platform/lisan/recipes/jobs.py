"""Table of jobs: the config of each and the stage or function that it runs.

A job's modules are imported on use, so that `--help` of one job loads no libraries of another, and neither torch nor Ray.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from lisan.core.command_line.run_job import run_job
from lisan.core.progress import doing
from lisan.core.stage import Stage, join_stage, run_stage
from lisan.core.torchrun import check_alone, first_reports, is_first


@dataclass(frozen=True)
class Job:
    """A job; paths are `module:name` below `lisan`."""

    name: str
    config_path: str
    action_path: str
    "Path of a Stage, or of a function that takes the config."

    @property
    def config(self) -> type[Any]:
        kind: type[Any] = _load(self.config_path)
        return kind

    @property
    def stage(self) -> Stage | None:
        """Return the stage; None for a job that makes no artifact."""
        action = _load(self.action_path)
        return action if isinstance(action, Stage) else None

    def run(self, config: Any) -> Any:
        if not is_first():
            return self._run(config)
        with doing(f"{self.name} is starting"):
            return self._run(config)

    def _run(self, config: Any) -> Any:
        stage = self.stage
        if stage is None:
            with first_reports():
                check_alone(self.name)
            return _load(self.action_path)(config)
        if not is_first():
            return join_stage(stage, config)
        from lisan.tracking.runs import open_run

        return run_stage(stage, config, open_run)


def _load(path: str) -> Any:
    module, name = path.split(":")
    return getattr(import_module(f"lisan.{module}"), name)


JOBS: Mapping[str, Job] = {
    name: Job(name, config, action)
    for name, config, action in (
        ("build_corpus", "corpus.config:CorpusConfig", "corpus.build_corpus:CORPUS"),
        ("expand_tokenizer", "tokenizer.expand.config:TokenizerConfig", "tokenizer.expand.expand_tokenizer:TOKENIZER"),
        ("encode_tokens", "data.config:EncodeConfig", "data.encode_tokens:TOKENS"),
        ("train_cpt", "train.config:TrainConfig", "train.stages:CPT"),
        ("train_sft", "train.config:TrainConfig", "train.stages:SFT"),
        ("sample_preferences", "synth.config:SampleConfig", "synth.sample_preferences:SAMPLE"),
        ("score_preferences", "train.config:ScoreConfig", "train.preference.score_preferences:SCORES"),
        ("train_dpo", "train.config:DpoConfig", "train.stages:DPO"),
        ("run_evals", "evaluate.config:EvalConfig", "evaluate.run_evals:EVALS"),
        (
            "report_fertility",
            "tokenizer.fertility.config:FertilityConfig",
            "tokenizer.fertility.report_fertility:FERTILITY",
        ),
        ("export_model", "export.config:ExportConfig", "export.export_model:EXPORT"),
        ("promote_model", "tracking.promote_model:PromoteConfig", "tracking.promote_model:promote"),
        ("show_example", "data.config:ShowConfig", "data.show_example:show"),
    )
}


def run_one(job_file: str) -> None:
    """Run the job that a file of `jobs/` is named after, with the arguments of the command line."""
    job = JOBS[Path(job_file).stem]
    run_job(job_file, job.config, job.run)
