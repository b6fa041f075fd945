"""Identity of a config: plain form and fingerprint of the fields that determine the result."""

import dataclasses
import hashlib
import json
import types
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from lisan.core.credentials import hide_credentials

NOT_IDENTITY = types.MappingProxyType({"identity": False})
"Metadata of a field that does not change the result, such as where a stage runs: `field(default=10, metadata=NOT_IDENTITY)`."


def to_plain(config: object, identity_only: bool = False) -> Any:
    """Return nested dicts, lists and scalars; `identity_only` drops NOT_IDENTITY fields and credentials in URLs."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        names = [f.name for f in dataclasses.fields(config) if not identity_only or is_identity(f)]
        return {name: to_plain(getattr(config, name), identity_only) for name in names}
    if isinstance(config, Mapping):
        return {str(key): to_plain(value, identity_only) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_plain(value, identity_only) for value in config]
    if isinstance(config, Enum):
        return config.value
    if isinstance(config, str) and identity_only:
        return hide_credentials(config)
    return str(config) if isinstance(config, Path) else config


def is_identity(field: "dataclasses.Field[Any]") -> bool:
    return bool(field.metadata.get("identity", True))


def keep_identity(recorded: object, config: object) -> Any:
    """Drop from a recorded plain config the fields that are NOT_IDENTITY in `config`; an older version may have kept them."""
    if not dataclasses.is_dataclass(config) or not isinstance(recorded, Mapping):
        return recorded
    dropped = {field.name for field in dataclasses.fields(config) if not is_identity(field)}
    return {
        name: keep_identity(value, getattr(config, name, None))
        for name, value in recorded.items()
        if name not in dropped
    }


def fingerprint(config: object) -> str:
    """Hash the identity of a config: the same on any machine and cluster."""
    return hash_plain(to_plain(config, identity_only=True))


def hash_plain(plain: object) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def flatten(plain: object, prefix: str = "") -> dict[str, Any]:
    """Turn nested dicts into dotted keys: {"optim": {"peak_lr": 1}} -> {"optim.peak_lr": 1}."""
    if isinstance(plain, Mapping) and plain:
        parts = [flatten(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in plain.items()]
        return {key: value for part in parts for key, value in part.items()}
    return {prefix: plain}


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name the keys in which two configs differ, with both values: `optim.peak_lr: 0.001 -> 0.01`."""
    before, after = flatten(old), flatten(new)
    keys = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    shown = [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in keys[:5]]
    return ", ".join(shown + ([f"and {len(keys) - 5} more"] if len(keys) > 5 else []))
