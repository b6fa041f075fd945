"""Checks of a training config against storage, before a worker starts.

Reads no weights and takes no machine. Facts that only a worker sees (its device, the weights of a hub id) are checked in the
worker.
"""

from collections.abc import Sequence

from lisan.cluster.config import Precision
from lisan.core.artifact import Artifact, Kind, Ref, Store
from lisan.core.errors import ConfigError, DataError
from lisan.core.identity import differing_keys, to_plain
from lisan.core.torchrun import num_processes
from lisan.model.parallel.fsdp import check_sharding
from lisan.train.config import DpoConfig, TrainConfig, parents_of
from lisan.train.loop import check_rows
from lisan.train.optim import check_moments
from lisan.train.options import PreferenceLoss, Quantisation
from lisan.train.preference.reference import check_precision
from lisan.train.run import plan_run
from lisan.train.setup.base_model import check_context, check_folders, check_vocabulary
from lisan.train.setup.tensor_parallel_checks import check_model


def check(config: TrainConfig, store: Store) -> None:
    """Refuse what cannot train: rows that do not divide, tokens of another vocabulary, a wrong mix."""
    num_workers = config.cluster.num_workers or num_processes()
    check_sharding(config.sharding, num_workers, config.cluster.num_nodes)
    check_rows(config.loop, num_workers, config.sharding.tensor_parallel_size)
    check_moments(config.optim)
    tokens = store.open(Ref.parse(config.tokens, Kind.tokens))
    kind = tokens.facts["record_kind"]
    if (kind == "preferences") != isinstance(config, DpoConfig):
        raise ConfigError(
            f"{tokens.ref} holds {kind}; train_dpo needs preferences and the others need documents or conversations"
        )
    check_stored(config, tokens)
    parents = tuple(store.open(ref) for ref in parents_of(config))
    check_folders(config, parents)
    check_vocabulary(config, tokens, parents)
    check_context(config, tokens, parents)
    check_model(config, parents)
    if config.validation.tokens is not None:
        check_held_out(config, tokens, parents)
    if isinstance(config, DpoConfig):
        check_scores(config, tokens, parents)
    num_steps, _ = plan_run(config, tokens)
    config.optim.check_warmup(num_steps)
    check_targets(config, tokens)


def check_targets(config: TrainConfig, tokens: Artifact) -> None:
    """Refuse rows of which no token is trained; DataError."""
    sources = [source for source in tokens.facts["sources"] if config.mix.reads(source)]
    if not any(tokens.facts["sources"][source]["targets"] for source in sources):
        raise DataError(
            f"{tokens.ref} has no trained token in {', '.join(sources)}: no reply of an assistant is in its rows; look at them "
            "with show_example, mix other sources, or encode conversations that have replies"
        )


def check_stored(config: TrainConfig, tokens: Artifact) -> None:
    """Refuse rows that are made while training runs where Ray Data cannot make them: it deals a row to one worker only."""
    split = config.sharding.tensor_parallel_size
    if split > 1 and "block_records" in tokens.facts:
        raise ConfigError(
            f"{tokens.ref} stores no rows and with sharding.tensor_parallel_size={split} every worker would make those of all; "
            "encode it "
            "with store_rows=true"
        )


def check_held_out(config: TrainConfig, tokens: Artifact, parents: Sequence[Artifact]) -> None:
    """Refuse held-out rows that are not held out, not stored, or of another tokenizer."""
    held_out = next(parent for parent in parents if str(parent.ref) == config.validation.tokens)
    key = f"validation.tokens={held_out.ref}"
    trained = [source for source in tokens.facts["sources"] if config.mix.reads(source)]
    shared = sorted(set(trained) & set(held_out.facts["sources"]))
    corpus, split = (held_out.config[name] for name in ("corpus", "split"))
    if shared and (corpus, split) == (tokens.config["corpus"], tokens.config["split"]):
        raise ConfigError(
            f"{key} holds the split {split} of {corpus}, of which {', '.join(shared)} is trained on; encode the corpus once more "
            "with split=validation"
        )
    if held_out.facts["record_kind"] == "preferences":
        raise ConfigError(f"{key} holds preferences; the loss is that of documents or conversations")
    if "block_records" in held_out.facts:
        raise ConfigError(f"{key} stores no rows; encode it with store_rows=true")
    if not any(source["targets"] for source in held_out.facts["sources"].values()):
        raise DataError(f"{key} has no trained token; encode records that have replies")
    check_vocabulary(config, held_out, parents)
    check_context(config, held_out, parents)


def check_scores(config: DpoConfig, tokens: Artifact, parents: Sequence[Artifact]) -> None:
    """Refuse scores of other rows, of another model, in another precision, or without the columns that the loss needs.

    What precision=auto comes to is known to the workers, who check it then.
    """
    scores = next((parent for parent in parents if parent.ref.kind is Kind.scores), None)
    if scores is None:
        return
    known = scores.manifest["parents"]
    for parent in (tokens, *(parent for parent in parents if parent.ref.kind in (Kind.model, Kind.tokenizer))):
        if known.get(str(parent.ref)) != parent.digest:
            names = ", ".join(ref for ref in known if ref.split("/")[0] == parent.ref.kind) or f"no {parent.ref.kind}"
            raise DataError(
                f"reference={scores.ref} was scored with {names}, not with this {parent.ref}; score_preferences again with it"
            )
    if config.precision is not Precision.auto:
        check_precision(scores, config.precision)
    wanted = {"model": to_plain(config.model)}
    keys = differing_keys({key: scores.config[key] for key in wanted}, wanted)
    if keys:
        raise DataError(
            f"reference={scores.ref} was scored with another config ({keys}); score_preferences with this one"
        )
    if config.float8 or config.tuning.quantise_base is not Quantisation.none:
        raise ConfigError(
            f"reference={scores.ref} was scored with whole weights and without float8; leave it out with "
            "tuning.quantise_base=nf4 or float8=true"
        )
    if config.loss is PreferenceLoss.kto and not scores.config["mismatched"]:
        raise ConfigError(
            f"loss=kto needs scores of exchanged replies, which {scores.ref} lacks; score with mismatched=true"
        )
