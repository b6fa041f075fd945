"""Promotion: registers a model and moves the alias that the endpoint serves to it, once its report passes every gate.

A second call with the same config changes nothing.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field

from lisan.core.artifact import Artifact, Kind, Ref, Store
from lisan.core.config import SIGNED
from lisan.core.errors import ConfigError, ServingError
from lisan.core.identity import NOT_IDENTITY
from lisan.core.stage import ClusterConfig, StorageConfig, TrackingConfig, check_reachable
from lisan.tracking.models import RegisteredVersion, move_alias, register_model
from lisan.tracking.runs import open_job

CANDIDATE = "candidate"
"Alias of the version registered last, which may not have passed its gates."


@dataclass(frozen=True, kw_only=True, slots=True)
class GateConfig:
    """Bounds on one metric of the report; every bound that is set must hold."""

    min: float | None = field(default=None, metadata=SIGNED)
    max: float | None = field(default=None, metadata=SIGNED)
    max_drop_ratio: float | None = None
    "How far the metric may fall below the baseline's, as a share of it: 0.03 lets 0.50 fall to 0.485."
    max_rise_ratio: float | None = None
    "How far it may rise above the baseline's: for metrics where less is better."

    def __post_init__(self) -> None:
        if all(bound is None for bound in asdict(self).values()):
            raise ConfigError("a gate needs min, max, max_drop_ratio or max_rise_ratio, got none; set one or remove it")
        for name in ("max_drop_ratio", "max_rise_ratio"):
            ratio = getattr(self, name)
            if ratio is not None and not ratio >= 0:
                raise ConfigError(f"{name} of a gate must be >= 0, got {ratio}; 0.03 allows three per cent")

    @property
    def is_relative(self) -> bool:
        return self.max_drop_ratio is not None or self.max_rise_ratio is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class PromoteConfig:
    name: str = "lisan"
    "Name of the registered model; the endpoint serves it under this name."
    model: str
    "Model artifact to promote, model/<name>@<version>."
    report: str
    "Evaluation report of that model, report/<name>@<version>."
    baseline: str | None = None
    "Report with which max_drop_ratio and max_rise_ratio compare."
    gates: dict[str, GateConfig] = field(default_factory=dict)
    "Bounds by metric of the report; empty promotes unconditionally."
    alias: str = "champion"
    storage: StorageConfig = field(default_factory=StorageConfig, metadata=NOT_IDENTITY)
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata=NOT_IDENTITY)
    cluster: ClusterConfig = field(default_factory=ClusterConfig, metadata=NOT_IDENTITY)

    def __post_init__(self) -> None:
        _check_ref("model", self.model, Kind.model)
        _check_ref("report", self.report, Kind.report)
        if self.baseline is not None:
            _check_ref("baseline", self.baseline, Kind.report)
        if not re.fullmatch(r"[\w][\w.-]*", self.name):
            raise ConfigError(f"name must be letters, digits, '.', '_' or '-', got {self.name!r}")
        if not re.fullmatch(r"[A-Za-z][\w-]*", self.alias) or re.fullmatch(r"latest|v\d+", self.alias):
            raise ConfigError(
                f"alias must be letters, digits, '_' or '-' and neither latest nor v<number>, got {self.alias!r}"
            )
        relative = [metric for metric, gate in self.gates.items() if gate.is_relative]
        if relative and self.baseline is None:
            raise ConfigError(f"gates.{relative[0]} compares with a baseline; set baseline=report/<name>@<version>")
        if self.baseline is not None and not relative:
            raise ConfigError(f"baseline {self.baseline} has no effect: no gate sets max_drop_ratio or max_rise_ratio")


def _check_ref(key: str, text: str, kind: Kind) -> None:
    try:
        Ref.parse(text, kind)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class GateResult:
    metric: str
    value: float
    bound: str
    "Condition as text: `>= 0.7`."
    passed: bool


def promote(config: PromoteConfig, say: Callable[[str], None] = print) -> RegisteredVersion:
    """Register the model, check the gates and move the alias to it.

    Raises ServingError, and leaves the alias, when a gate fails or the report is about another model.
    """
    check_reachable(config.storage, config.cluster)
    store = Store(config.storage.root)
    model, report = store.open(Ref.parse(config.model)), store.open(Ref.parse(config.report))
    parents = [model, report]
    check_subject(report, model)
    baseline: Mapping[str, float] = {}
    if config.baseline is not None:
        parents.append(store.open(Ref.parse(config.baseline)))
        baseline = read_metrics(parents[-1])
    results = check_gates(config.gates, read_metrics(report), baseline, config.report)
    version = register_model(config.tracking, config.storage.root, config.name, model)
    say(format_gates(results))
    failed = [result for result in results if not result.passed]
    if config.alias in version.aliases and not failed:
        say(f"{config.name}@{config.alias} already is version {version.version} ({config.model}), nothing to do")
        return version
    return _move(config, version, results, parents, say)


def _move(
    config: PromoteConfig,
    version: RegisteredVersion,
    results: list[GateResult],
    parents: Collection[Artifact],
    say: Callable[[str], None],
) -> RegisteredVersion:
    """Move `candidate` and then the alias to the version, in a run that records the gate table."""
    root, failed = config.storage.root, [result for result in results if not result.passed]
    name = f"{config.model} as {config.name}@{config.alias}"
    with open_job("promote_model", name, config, parents, registered=f"{config.name}/{version.version}") as run:
        run.log_metrics({f"gate/{result.metric}": result.value for result in results})
        run.log_file("gates.json", json.dumps([asdict(result) for result in results], indent=1).encode())
        run.log_file("gates.txt", format_gates(results).encode())
        if config.alias != CANDIDATE and not version.aliases:
            version = move_alias(config.tracking, root, config.name, CANDIDATE, version.version)
        if failed:
            raise ServingError(
                f"alias {config.alias} does not move to {config.model}: {_describe_failures(failed)}; "
                "train it further or change the gate"
            )
        version = move_alias(config.tracking, root, config.name, config.alias, version.version)
    say(f"{config.name}@{config.alias} is version {version.version} now ({config.model})")
    return version


def _describe_failures(failed: list[GateResult]) -> str:
    return " and ".join(f"{result.metric} is {result.value:.4g} but must be {result.bound}" for result in failed)


def check_subject(report: Artifact, model: Artifact) -> None:
    """Refuse a report about another model, or about an earlier build of this one."""
    subjects = report.manifest["parents"]
    mark = subjects.get(str(model.ref))
    if mark is None:
        known = ", ".join(ref for ref in subjects if ref.startswith(Kind.model)) or "no model"
        raise ServingError(f"{report.ref} is about {known}, not about {model.ref}; run run_evals on {model.ref} first")
    if mark != model.digest:
        raise ServingError(
            f"{report.ref} is about an earlier {model.ref} with another config; run run_evals with a new version"
        )


def read_metrics(report: Artifact) -> Mapping[str, float]:
    metrics = report.facts.get("metrics")
    if not metrics:
        raise ServingError(f"{report.ref} has no metrics; run run_evals with at least one task")
    return {name: float(value) for name, value in metrics.items()}


def check_gates(
    gates: Mapping[str, GateConfig], metrics: Mapping[str, float], baseline: Mapping[str, float], report: str
) -> list[GateResult]:
    """Compare metrics with their bounds; a metric that is NaN fails, one that is missing is a ServingError."""
    results = []
    for metric, gate in gates.items():
        for source in (metrics, baseline) if gate.is_relative else (metrics,):
            if metric not in source:
                where = report if source is metrics else "the baseline"
                known = ", ".join(sorted(source)) or "none"
                raise ServingError(f"gates.{metric} names no metric of {where} (metrics: {known}); correct the name")
        results += _check_gate(metric, gate, metrics[metric], baseline.get(metric))
    return results


def _check_gate(metric: str, gate: GateConfig, value: float, before: float | None) -> list[GateResult]:
    floors = [(gate.min, "")]
    ceilings = [(gate.max, "")]
    if before is not None:
        why = f" (baseline {before:.4g})"
        floors.append((None if gate.max_drop_ratio is None else before - abs(before) * gate.max_drop_ratio, why))
        ceilings.append((None if gate.max_rise_ratio is None else before + abs(before) * gate.max_rise_ratio, why))
    results = [
        GateResult(metric=metric, value=value, bound=f">= {floor:.4g}{why}", passed=value >= floor)
        for floor, why in floors
        if floor is not None
    ]
    return results + [
        GateResult(metric=metric, value=value, bound=f"<= {ceiling:.4g}{why}", passed=value <= ceiling)
        for ceiling, why in ceilings
        if ceiling is not None
    ]


def format_gates(results: list[GateResult]) -> str:
    """Return the gates as a text table."""
    if not results:
        return "no gates set"
    rows = [("gate", "value", "bound", "")]
    rows += [(r.metric, f"{r.value:.4g}", r.bound, "passed" if r.passed else "FAILED") for r in results]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]}".rstrip() for row in rows]
    return "\n".join(lines)
