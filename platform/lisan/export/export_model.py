"""The `export_model` stage: writes a finished model in the formats of other engines.

Takes a model artifact or folder; returns an `export` artifact with one folder for each format. Every folder is read back and
compared with the original on the probes; the figures are in the manifest and in the folder itself.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lisan.core.artifact import Artifact, Draft, Kind, Ref, Store
from lisan.core.errors import ArtifactError, ConfigError, DataError
from lisan.core.integrity import fetch_folder
from lisan.core.progress import doing
from lisan.core.references import parse_refs
from lisan.core.stage import Run, Stage
from lisan.core.storage import writing
from lisan.export.config import ExportConfig, Format
from lisan.export.formats import (
    ADAPTER,
    ADAPTER_CONFIG,
    PROVENANCE,
    READERS,
    WRITERS,
    ExportSource,
    read_adapter_config,
)
from lisan.export.gguf import check_gguf
from lisan.export.gguf_tokenizer import describe_tokenizer
from lisan.export.ollama import write_modelfile
from lisan.export.parity import Parity, compare_logits, compute_logits, probe_rows
from lisan.export.quantise import check_quantisable
from lisan.model.embeddings.trained_rows import TRAINED_ROWS
from lisan.model.folder import check_folder, read_config
from lisan.model.load import load_model
from lisan.model.weights.safetensors_files import weight_files
from lisan.tokenizer.tokenizer import load_tokenizer


def export_model(config: ExportConfig, draft: Draft, run: Run) -> Mapping[str, Any]:
    source = find_source(config, draft.store)
    original = load_model(str(source.folder)).eval()
    rows = probe_rows(load_tokenizer(source.folder), original.config.max_position_embeddings)
    reference = compute_logits(original, rows)
    del original
    facts = {}
    for form in config.formats:
        with tempfile.TemporaryDirectory(prefix="lisan-export-") as scratch:
            location = draft.location / form
            folder = Path(location.make().full_path) if location.is_local else Path(scratch)
            with doing(f"writing {form}"), writing(location, f"the {form} export"):
                WRITERS[form](config, source, folder)
            with doing(f"comparing {form} with the original"):
                parity = compare_logits(reference, compute_logits(READERS[form](config, source, folder), rows))
            check_parity(config, form, parity)
            facts[form] = {**asdict(parity), "tolerance": config.tolerance(form), "num_bytes": count_bytes(folder)}
            write_provenance(config, source, form, folder, facts[form])
            with writing(location, f"the {form} export"):
                location.upload(folder)
        run.log_metrics({f"{form}/{name}": float(value) for name, value in facts[form].items()})
        print(
            f"  {form}: KL {parity.mean_kl:.2e} nats per token, same first token {parity.agreement_ratio:.1%}",
            flush=True,
        )
    return {"model": config.model, "formats": facts}


def check_parity(config: ExportConfig, form: Format, parity: Parity) -> None:
    """Raise ArtifactError when an export differs from its model by more than the tolerance."""
    tolerance = config.tolerance(form)
    if not parity.mean_kl <= tolerance:
        raise ArtifactError(
            f"{config.model} as {form} is {parity.mean_kl:.4g} nats per token from the original, tolerance {tolerance:.4g}; "
            f"choose a format with more bits, or set '+tolerances={{{form}: ...}}' if that is close enough"
        )


def find_source(config: ExportConfig, store: Store) -> ExportSource:
    """Return the model and, for an adapter, the base that it was trained over."""
    if not Ref.looks_like(config.model):
        folder = Path(config.model).expanduser().resolve()
        base = read_adapter_config(folder).get("base_model_name_or_path") or ""
        return ExportSource(folder, "", base, base)
    artifact = store.open(Ref.parse(config.model, Kind.model))
    folder, fingerprint = fetch_folder(artifact.location), artifact.manifest["fingerprint"]
    if not (folder / ADAPTER).is_dir():
        return ExportSource(folder, fingerprint)
    name = artifact.config["model"]["path"]
    return ExportSource(folder, fingerprint, _open_base(artifact, name, store) if Ref.looks_like(name) else name, name)


def _open_base(artifact: Artifact, name: str, store: Store) -> str:
    base = store.open(Ref.parse(name, Kind.model))
    if base.digest != artifact.manifest["parents"].get(name):
        raise ArtifactError(
            f"the adapter of {artifact.ref} was trained over another {name}; export hf, which needs no base"
        )
    return str(fetch_folder(base.location))


def check_export(config: ExportConfig, store: Store) -> None:
    """Refuse formats that cannot represent this model, before anything is written."""
    folder = find_source(config, store).folder
    if not (folder / "config.json").exists():
        raise DataError(
            f"model={config.model} is not a model folder: no config.json in {folder}; name a finished model"
        )
    weight_files(folder)
    check_folder(folder)
    if {Format.adapter, Format.merged} & set(config.formats):
        check_adapter(config, read_adapter_config(folder))
    if Format.adapter in config.formats and (folder / ADAPTER / TRAINED_ROWS).exists():
        raise ConfigError(
            f"the adapter of {config.model} came with rows of the vocabulary that were trained (tuning.rows), which vLLM does "
            "not load over a base; export merged, or hf, which is the merged model already"
        )
    if Format.int8 in config.formats:
        check_quantisable(folder, 8, config.int4_group)
    if Format.int4 in config.formats:
        check_quantisable(folder, 4, config.int4_group)
    if Format.gguf in config.formats:
        check_gguf(folder, config.gguf_type)
        describe_tokenizer(folder, read_config(folder).vocab_size)
        write_modelfile(load_tokenizer(folder), "", adds_bos=False)


def check_adapter(config: ExportConfig, plain: Mapping[str, Any]) -> None:
    """Raise ConfigError for a missing adapter, or one that no engine loads over a base."""
    if not plain:
        raise ConfigError(
            f"formats names adapter or merged, but {config.model} has no {ADAPTER}/{ADAPTER_CONFIG}: it was not trained with "
            "tuning.method=lora; hf is the whole model"
        )
    targets = plain.get("target_modules") or ()
    of_rows = {"embed_tokens", "lm_head"} & {*([targets] if isinstance(targets, str) else targets)}
    of_rows |= {key for key in ("modules_to_save", "trainable_token_indices") if plain.get(key)}
    if of_rows and Format.adapter in config.formats:
        raise ConfigError(
            f"the adapter of {config.model} changes rows of the vocabulary ({min(of_rows)}), which vLLM does not load over a "
            "base; export merged instead"
        )
    if plain.get("use_dora") and Format.adapter in config.formats:
        raise ConfigError(
            f"the adapter of {config.model} is a DoRA, which vLLM does not load over a base; export merged, or hf, which is "
            "the merged model already"
        )


def write_provenance(
    config: ExportConfig, source: ExportSource, form: Format, folder: Path, figures: Mapping[str, Any]
) -> None:
    """Write the source and the figures of an export into its folder, which may be copied elsewhere."""
    plain = {
        "export": f"{Kind.export}/{config.name}@{config.version}",
        "format": form,
        "model": config.model,
        "fingerprint": source.fingerprint,
        "base": source.base_name if form in (Format.adapter, Format.merged) else "",
        "int4_group": config.int4_group if form is Format.int4 else None,
        "gguf_type": config.gguf_type if form is Format.gguf else None,
        "parity": dict(figures),
    }
    known = {key: value for key, value in plain.items() if value not in ("", None)}
    (folder / PROVENANCE).write_text(json.dumps(known, indent=1, ensure_ascii=False), encoding="utf-8")


def count_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _parents(config: ExportConfig) -> tuple[Ref, ...]:
    return parse_refs(config.model, kind=Kind.model)


EXPORT = Stage(
    "export_model",
    Kind.export,
    ExportConfig,
    _parents,
    export_model,
    check_export,
    inputs=lambda config: (config.model,),
)
