"""Finds the model folder to serve and checks it before an engine starts."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from lisan.core.artifact import Kind, Ref, Store
from lisan.core.errors import ServingError, first_line
from lisan.core.storage import Location
from lisan.inference.config import ServeConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """A model folder that passed the checks."""

    name: str
    "Id in the API."
    source: str
    "Its name in messages: `lisan v3 (model/dpo@v1)` or a folder."
    folder: Location
    "With the settings of its store."


def find_served_model(config: ServeConfig) -> ServedModel:
    """Find and check the folder of `path` or of the alias; ServingError when it is no model folder.

    Folders below storage.root are read with its settings: MLflow stores no endpoint and no region.
    """
    root = Location(config.storage.root)
    if config.path is None:
        from lisan.tracking.models import resolve_alias

        version = resolve_alias(config.tracking, config.storage.root, config.model, config.alias)
        source, folder = f"{version.name} v{version.version} ({version.ref})", root.resolve(version.uri)
    elif Ref.looks_like(config.path):
        source, folder = config.path, Store(root.root).open(Ref.parse(config.path, Kind.model)).location
    elif "://" in config.path:
        folder = root.resolve(config.path)
        source = str(folder)
    else:
        source = os.path.abspath(os.path.expanduser(config.path))
        folder = Location(source)
    check_model_folder(folder, source)
    return ServedModel(name=config.model, source=source, folder=folder)


def check_model_folder(folder: Location, source: str) -> None:
    """Refuse a folder that vLLM could not load: vLLM reports it after half a minute, in a replica's log."""
    try:
        names = {file.name for file, _ in folder.walk()}
    except OSError as error:
        raise ServingError(
            f"{source} cannot be read at {folder}: {first_line(error)}; set storage.root to the root that it lies below, "
            "with the endpoint and region of that"
        ) from error
    missing = [name for name in ("config.json", "tokenizer.json") if name not in names]
    if not any(name.endswith(".safetensors") for name in names):
        missing.append("*.safetensors")
    remedy = "name a folder in Hugging Face layout, or model/name@version"
    if missing:
        raise ServingError(f"{source} is not a model folder: {folder} has no {', '.join(missing)}; {remedy}")
    try:
        architectures = json.loads((folder / "config.json").read_bytes()).get("architectures")
    except (ValueError, AttributeError) as error:
        raise ServingError(f"{folder / 'config.json'} is not a JSON object ({error}); {remedy}") from error
    if not architectures:
        raise ServingError(f"{folder / 'config.json'} names no architectures for vLLM to choose from; {remedy}")


def check_weights(folder: Path) -> None:
    """Refuse weights that contradict config.json before the engine starts, which takes half a minute.

    vLLM reads tie_word_embeddings from config.json only, whatever tensors the files hold.
    """
    from lisan.model.folder import check_folder, read_corrected_json
    from lisan.model.model_files import CONFIG, read_json

    check_folder(folder)
    if read_corrected_json(folder) != read_json(folder / CONFIG):
        raise ServingError(
            f"{folder / CONFIG} says tie_word_embeddings and the files hold two different matrices, of which vLLM would use one; "
            "set it to false there, or export the model with formats=[hf] and serve that"
        )
