"""Writes the trained model as a Hugging Face folder, from shards on the workers."""

import json
import shutil
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from lisan.cluster.config import Precision
from lisan.cluster.precision import find_precision
from lisan.cluster.worker import Worker
from lisan.core.storage import Location, workspace, writing
from lisan.model.adapters.lora import note_base, write_adapter
from lisan.model.adapters.nf4 import is_quantised
from lisan.model.adapters.save_merged import write_config, write_weights
from lisan.model.config import InitMethod
from lisan.model.embeddings.donor import keep_donor_rows
from lisan.model.embeddings.new_rows import NewRows, check_new_rows, read_new_rows, write_new_rows
from lisan.model.embeddings.resize import gather
from lisan.model.embeddings.trained_rows import write_trained_rows
from lisan.model.folder import read_generation
from lisan.model.load import load_model
from lisan.model.model_files import GENERATION
from lisan.model.score import Scorer, collate, reshard
from lisan.tokenizer.chat.chat_template import end_of_turn_id
from lisan.tokenizer.tokenizer import (
    EXPANSION,
    TEMPLATE,
    TOKENIZER,
    open_tokenizer,
    read_definition,
    tokenizer_folder,
)
from lisan.train.setup.base_model import Adapted, Places

PATIENCE = timedelta(hours=12)
PROBE_TOKENS = 64
"On which a model that was merged into restored 4 bits is compared with the one that was trained."
TOKENIZER_FILES = (EXPANSION, TEMPLATE, "tokenizer_config.json", "special_tokens_map.json")
"Copied as they are: their hash is what tokens and models are matched by."


def write_model(
    config: Any, places: Places, adapted: Adapted, scorer: Scorer, output: Location, worker: Worker
) -> None:
    """Gather the weights and let the first rank write the finished folder; every rank returns when it is there."""
    # Others wait while the first rank writes and uploads, which may take longer than any collective of training.
    patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    reshard(scorer)
    new_rows = settle_rows(adapted)
    trained = score_probe(scorer, worker.device) if is_quantised(adapted.model) else None
    with writing(output, "the model"), workspace(output, "model") if worker.is_first else nullcontext() as folder:
        adapter = folder and folder / "adapter"
        if adapted.wrapper is not None:
            write_adapter(adapted.wrapper, adapter, new_rows, gather)
            write_trained_rows(adapted.model, adapted.rows, adapter)
        write_weights(adapted.model, folder, config.save_precision.dtype)
        if folder is not None:
            write_config(adapted.model, folder, config.save_precision.dtype)
            if trained is not None:
                # The weights are those of the files; they are multiplied as in training, unless that is slow on this CPU.
                is_slow = find_precision("cpu").precision is Precision.float32
                dtype = torch.float32 if is_slow else worker.precision.dtype
                merged = score_probe(Scorer(load_model(str(folder), dtype)), "cpu")
                note_base(folder / "adapter", merged_nats=float((merged - trained).abs().mean()))
            before = read_new_rows(places.model) if places.model else ()
            write_new_rows(folder, [*before, *new_rows])
            copy_tokenizer(places.tokenizer, folder, places.model)
            output.upload(folder)
    dist.barrier(patient)
    dist.destroy_process_group(patient)


@torch.no_grad()
def score_probe(scorer: Scorer, device: str) -> torch.Tensor:
    """Return the log-probabilities of a row of ids from all over the vocabulary; every rank calls it."""
    scorer.eval()
    num_pieces = scorer.model.get_input_embeddings().weight.shape[0]
    ids = np.random.default_rng(0).integers(num_pieces, size=(1, PROBE_TOKENS))
    logps: torch.Tensor = scorer(collate(ids, ids, [[PROBE_TOKENS]]).to(device)).cpu()
    reshard(scorer)
    return logps


def settle_rows(adapted: Adapted) -> list[NewRows]:
    """Return the manifest of the rows that this run added, if it did.

    A run that trains no rows leaves the vocabulary alone: its rows after training are those of the manifest, or the model is not
    that of the manifest. A donor's are taken as they are, for every rank holds its shard of its own fit, and fits round as their
    machine does.
    """
    manifest = adapted.new_rows
    if manifest is None:
        return []
    if not adapted.rows and manifest.method is InitMethod.donor:
        manifest = keep_donor_rows(adapted.model, manifest)
    if not adapted.rows:
        check_new_rows(adapted.model, manifest)
    return [manifest]


def copy_tokenizer(place: str, folder: Path, model: str = "") -> None:
    """Put the tokenizer, its template and the generation defaults beside the weights; `model` is the base, if there is one."""
    tokenizer = open_tokenizer(place)
    source = tokenizer_folder(place)
    if not (source / TOKENIZER).exists():  # a bare tokenizer.model
        tokenizer.save_pretrained(folder)
    (folder / TOKENIZER).write_bytes(read_definition(source))
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copy(source / name, folder / name)
    write_generation(tokenizer, folder, read_generation(model) if model else {})


def write_generation(tokenizer: Any, folder: Path, base: dict[str, Any]) -> None:
    """Write the generation defaults: those of the base where it has any, with the end of a turn as one more end.

    A model without such a base is greedy and stops after 256 tokens.
    """
    ends = base.pop("eos_token_id", None)
    ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id, end_of_turn_id(tokenizer)} - {None}
    own = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    defaults = {
        **(base or {"do_sample": False, "max_new_tokens": 256}),
        **{name: base.get(name) if token is None else token for name, token in own.items()},
        "eos_token_id": sorted(ends),
    }
    (folder / GENERATION).write_text(json.dumps(defaults, indent=1), encoding="utf-8")
