"""Fetches and reads the files of a model: a local folder or a hub id, and its JSON files."""

import json
from pathlib import Path
from typing import Any

from lisan.core.errors import DataError, first_line
from lisan.model.weights.safetensors_files import WEIGHTS, list_weights

CONFIG = "config.json"
GENERATION = "generation_config.json"
ADAPTER_CONFIG = "adapter_config.json"


def fetch_weights(name_or_path: str) -> Path:
    """Return the local folder of a model; of a hub id, download the JSON and safetensors files that transformers reads."""
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    folder = _fetch(name_or_path, ["*.json", WEIGHTS])
    shards = [name for name in list_weights(folder) if not (folder / name).exists()]
    return _fetch(name_or_path, shards) if shards else folder


def _fetch(name_or_path: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name_or_path, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise DataError(f"{name_or_path} is not a model that transformers can load: {reason}") from error


def read_json(file: Path) -> dict[str, Any]:
    """Return the object of a JSON file; DataError for a missing file, broken JSON or another JSON type."""
    refuse_broken_json(file)
    try:
        found: dict[str, Any] = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{file} does not exist; copy or download the model again") from error
    return found


def refuse_broken_json(file: Path) -> None:
    """Raise DataError for an existing file that is not one JSON object."""
    try:
        found = json.loads(file.read_bytes()) if file.is_file() else {}
    except ValueError as error:
        raise DataError(f"{file} is cut off or no JSON ({error}); copy or download it again") from error
    if not isinstance(found, dict):
        raise DataError(f"{file} holds no JSON object; copy or download it again")
