"""The `score_preferences` stage: log-probabilities of every reply under the reference model, as a `scores` artifact.

The scores equal those that the workers of train_dpo compute, to the last digit; a killed job continues with the missing parts.
Useful when several runs (a sweep of beta, loss or rate) share one reference, or for scoring on other machines than training: Ray
maps parts of the rows over `cluster.num_workers` actors, each with the whole model. A model too large for one GPU is scored by
the workers of train_dpo, over which it is sharded. Actors on GPUs are not tested yet.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lisan.cluster.precision import resolve_precision
from lisan.core.artifact import Draft, Kind, Ref, Store
from lisan.core.errors import ConfigError
from lisan.core.parts import list_missing
from lisan.core.progress import ItemProgress
from lisan.core.stage import Run, Stage
from lisan.core.storage import Location
from lisan.data.rows import RowReader
from lisan.train.config import ScoreConfig, as_training, inputs_of, parents_of
from lisan.train.preference.kto import MismatchedReader
from lisan.train.preference.reference import REFERENCE, join_scores, read_scores, write_scores
from lisan.train.preference.score_parts import Part, ScoreJob, find_precisions, score_parts
from lisan.train.setup.base_model import check_context, check_folders, check_vocabulary


def score_preferences(config: ScoreConfig, draft: Draft, run: Run) -> Mapping[str, Any]:
    tokens = draft.parent(Kind.tokens)
    resolved = resolve_precision(config.precision, find_precisions(config.cluster))
    print(f"  {resolved}", flush=True)
    run.log_tag("precision", str(resolved.precision))
    # Parts of a job that goes on on other machines are of one precision too.
    parts = draft.parts / resolved.precision
    job = ScoreJob(config, tokens, draft.parents, parts, len(RowReader(tokens)), resolved.precision)
    plan = job.plan()
    missing = [plan[index] for index in list_missing(job.parts, [part.path for part in plan], "scored")]
    progress = ItemProgress("scored", "rows", sum(map(job.count_rows, missing)), run.log_metrics)
    with closing(score_parts(job, missing)) as scored:
        for count in scored:
            progress.add(count)
    return {"rows": job.num_rows, "precision": resolved.precision.value, **_join(job, plan, draft.location)}


def _join(job: ScoreJob, plan: Sequence[Part], target: Location) -> dict[str, Any]:
    """Write one file a pass and return its facts."""
    for folder in dict.fromkeys(part.folder for part in plan):
        table = join_scores(read_scores(job.parts / part.path) for part in plan if part.folder == folder)
        write_scores(table, target / folder / REFERENCE)
    matched = read_scores(target / REFERENCE)
    logps = pc.list_flatten(matched["logps"]).combine_chunks()
    chosen, rejected = (float(pc.mean(logps.take(pa.array(range(side, len(logps), 2)))).as_py()) for side in (0, 1))
    return {"documents": len(logps), "mean_chosen_logp": chosen, "mean_rejected_logp": rejected}


def _parents(config: ScoreConfig) -> tuple[Ref, ...]:
    return parents_of(as_training(config))


def _check(config: ScoreConfig, store: Store) -> None:
    tokens = store.open(Ref.parse(config.tokens, Kind.tokens))
    if tokens.facts["record_kind"] != "preferences":
        raise ConfigError(f"{tokens.ref} holds {tokens.facts['record_kind']}; score_preferences needs preferences")
    parents = tuple(store.open(ref) for ref in _parents(config))
    training = as_training(config)
    check_folders(training, parents)
    check_vocabulary(training, tokens, parents)
    check_context(training, tokens, parents)
    if config.mismatched:
        MismatchedReader(tokens)


SCORES = Stage(
    "score_preferences",
    Kind.scores,
    ScoreConfig,
    _parents,
    score_preferences,
    _check,
    inputs=lambda config: inputs_of(as_training(config)),
)
