"""Writers and readers of the export formats.

A writer makes a folder from an `ExportSource`. A reader loads only that folder (and the base of an adapter), with the numbers
that its engine computes with.

hf: the folder as it is. adapter: the LoRA alone. merged: base and adapter merged. int8, int4: for vLLM. gguf: for llama.cpp,
with a Modelfile for Ollama.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lisan.core.artifact import DRAFT, MANIFEST, PAGE
from lisan.export.config import ExportConfig, Format
from lisan.export.gguf import read_gguf, write_gguf
from lisan.export.gguf_tokenizer import composes_text, describe_tokenizer
from lisan.export.ollama import MODELFILE, write_modelfile
from lisan.export.quantise import read_quantised, write_quantised
from lisan.model.adapters.lora import read_adapter
from lisan.model.adapters.save_merged import write_config, write_weights
from lisan.model.embeddings.new_rows import MANIFEST as NEW_ROWS
from lisan.model.folder import read_config, read_corrected_json
from lisan.model.folder_tensors import assemble
from lisan.model.load import load_model
from lisan.model.model_files import GENERATION, read_json
from lisan.model.weights.safetensors_files import INDEX, WEIGHTS, weight_files
from lisan.tokenizer.tokenizer import load_tokenizer

ADAPTER = "adapter"
ADAPTER_CONFIG = "adapter_config.json"
PROVENANCE = "export.json"
"File with the source and the figures of an export."
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


@dataclass(frozen=True)
class ExportSource:
    """The model to export, and the base of its adapter."""

    folder: Path
    fingerprint: str
    "Fingerprint of the artifact; empty for a folder."
    base: str = ""
    "Folder or hub id of the base of its adapter; empty without one."
    base_name: str = ""
    "Name of the base in the training config: a ref, a folder or a hub id."


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return the adapter config beside a model; empty without an adapter."""
    file = folder / ADAPTER / ADAPTER_CONFIG
    found: dict[str, Any] = json.loads(file.read_bytes()) if file.exists() else {}
    return found


def write_hf(config: ExportConfig, source: ExportSource, folder: Path) -> None:  # noqa: ARG001
    files = weight_files(source.folder)
    names = ["config.json", *(file.name for file in files)]
    if WEIGHTS not in names and (source.folder / INDEX).exists():
        names.append(INDEX)  # beside a single file it would send engines to missing ones
    for name in names:
        shutil.copy(source.folder / name, folder / name)
    if (plain := read_corrected_json(source.folder)) != read_json(source.folder / "config.json"):
        (folder / "config.json").write_text(json.dumps(plain, indent=2, ensure_ascii=False), encoding="utf-8")
    copy_companions(source.folder, folder)


def write_adapter(config: ExportConfig, source: ExportSource, folder: Path) -> None:  # noqa: ARG001
    # PEFT's model card has the base's local path on the training machine.
    shutil.copytree(source.folder / ADAPTER, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("README.md"))
    plain = read_adapter_config(source.folder) | {"base_model_name_or_path": source.base_name}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(plain, indent=2, ensure_ascii=False), encoding="utf-8")


def write_merged(config: ExportConfig, source: ExportSource, folder: Path) -> None:  # noqa: ARG001
    model = read_adapter(load_model(source.base), source.folder / ADAPTER).base_model.model
    dtype = read_config(source.folder).dtype or torch.float32
    write_weights(model, folder, dtype)
    write_config(model, folder, dtype)
    copy_companions(source.folder, folder)


def write_int8(config: ExportConfig, source: ExportSource, folder: Path) -> None:
    write_quantised(source.folder, folder, 8, config.int4_group)
    copy_companions(source.folder, folder)


def write_int4(config: ExportConfig, source: ExportSource, folder: Path) -> None:
    write_quantised(source.folder, folder, 4, config.int4_group)
    copy_companions(source.folder, folder)


def write_gguf_folder(config: ExportConfig, source: ExportSource, folder: Path) -> None:
    file = gguf_file(config, folder)
    tokenizer = describe_tokenizer(source.folder, read_config(source.folder).vocab_size)
    write_gguf(source.folder, file, config.gguf_type, config.name, tokenizer)
    if composes_text(source.folder):
        print(
            "  gguf: the tokenizer composes text (NFC) and llama.cpp does not, so that a shadda typed before its vowel mark gives "
            "other ids; put text into NFC before you send it",
            flush=True,
        )
    generation = read_json(source.folder / GENERATION) if (source.folder / GENERATION).exists() else {}
    text = write_modelfile(load_tokenizer(source.folder), file.name, tokenizer["ggml.add_bos_token"], generation)
    (folder / MODELFILE).write_text(text, encoding="utf-8")
    if (source.folder / NEW_ROWS).exists():
        shutil.copy(source.folder / NEW_ROWS, folder / NEW_ROWS)


def gguf_file(config: ExportConfig, folder: Path) -> Path:
    return folder / f"{config.name}-{config.gguf_type}.gguf"


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the other files: tokenizer, template, generation defaults, manifests of expansion and new rows."""
    excluded = {"config.json", MANIFEST, DRAFT, PAGE, PROVENANCE}
    for path in sorted(source.iterdir()):
        is_weights = path.suffix in WEIGHT_SUFFIXES or path.name.endswith(".index.json")
        if path.is_file() and path.name not in excluded and not is_weights:
            shutil.copy(path, folder / path.name)


def read_adapted(config: ExportConfig, source: ExportSource, folder: Path) -> Any:  # noqa: ARG001
    # Engines do not quantise the base, even if the adapter was trained over a 4-bit one.
    return read_adapter(load_model(source.base), folder, as_trained=False).eval()


def read_whole(config: ExportConfig, source: ExportSource, folder: Path) -> Any:  # noqa: ARG001
    return load_model(str(folder)).eval()


def read_rounded(config: ExportConfig, source: ExportSource, folder: Path) -> Any:  # noqa: ARG001
    return read_quantised(folder)


def read_gguf_folder(config: ExportConfig, source: ExportSource, folder: Path) -> Any:
    plain = read_config(source.folder)
    return assemble(plain, read_gguf(gguf_file(config, folder), plain), str(folder))


WRITERS: dict[Format, Callable[[ExportConfig, ExportSource, Path], None]] = {
    Format.hf: write_hf,
    Format.adapter: write_adapter,
    Format.merged: write_merged,
    Format.int8: write_int8,
    Format.int4: write_int4,
    Format.gguf: write_gguf_folder,
}
READERS: dict[Format, Callable[[ExportConfig, ExportSource, Path], Any]] = {
    Format.hf: read_whole,
    Format.adapter: read_adapted,
    Format.merged: read_whole,
    Format.int8: read_rounded,
    Format.int4: read_rounded,
    Format.gguf: read_gguf_folder,
}
