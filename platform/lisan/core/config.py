"""From YAML and command line to one frozen, typed object. The only file that knows Hydra and OmegaConf.

In: a dataclass (the schema, with every default), `conf/<job>.yaml` (the choice) and command-line overrides. Out: a
frozen instance, lists turned to tuples, `__post_init__` checked. Always: any failure is one ConfigError sentence
naming the key.
"""

import dataclasses
import difflib
import errno
import hashlib
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from lisan.core.errors import ConfigError, LisanError
from lisan.core.peers import first_speaks

T = TypeVar("T")
NOT_IDENTITY = types.MappingProxyType({"identity": False})
"Metadata of a dataclass field that says where or how a stage runs, not what it makes: `field(default=10, metadata=NOT_IDENTITY)`."
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOTDIR)
"What the operating system says of a disk that is full, a root that is read-only or no folder."


def register(name: str, schema: type[Any]) -> None:
    """Put the schema in Hydra's ConfigStore as `<name>_schema`, so that every field can be overridden."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name=f"{name}_schema", node=_schema_node(schema))


def _schema_node(schema: type[Any]) -> Any:
    from omegaconf import OmegaConf

    node = OmegaConf.structured(_thaw(schema))
    for name, hint in typing.get_type_hints(schema).items():
        if hint == dict[str, str]:  # labels are the user's: they take no + on the command line
            OmegaConf.set_struct(node._get_node(name), False)
    return node


@cache
def _thaw_cached(schema: Any) -> type[Any]:
    """Return the same dataclass, not frozen, all the way down: OmegaConf makes frozen ones read-only and then refuses overrides."""
    hints = typing.get_type_hints(schema)
    fields = [(f.name, _thaw_hint(hints[f.name]), _thaw_field(f)) for f in dataclasses.fields(schema)]
    return dataclasses.make_dataclass(schema.__name__, fields, kw_only=True)


def _thaw(schema: Any) -> type[Any]:
    return _thaw_cached(schema)


def _thaw_hint(hint: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return _thaw(typing.cast(type[Any], hint))
    arguments = tuple(_thaw_hint(argument) for argument in typing.get_args(hint))
    if not arguments:
        return hint
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return typing.Union[arguments]  # noqa: UP007  built from a tuple
    return typing.get_origin(hint)[arguments]


def _thaw_field(field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return dataclasses.field(default=field.default)
    factory = field.default_factory
    if factory is dataclasses.MISSING:
        return dataclasses.field()
    return dataclasses.field(default_factory=lambda: _thaw_value(factory()))


def _thaw_value(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value)]
        return _thaw(type(value))(**{name: _thaw_value(getattr(value, name)) for name in names})
    return value


def compose(
    conf_dir: Path, job: str, schema: type[T], overrides: Sequence[str], values: Mapping[str, Any] | None = None
) -> T:
    """Compose `conf/<job>.yaml` with overrides, lay `values` over it and load it; ConfigError in one sentence."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    register(job, schema)
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir), version_base="1.3"):
            raw = hydra_compose(job, overrides=list(overrides))
        OmegaConf.set_struct(raw, False)  # `load` refuses unknown fields; dictionaries take new keys
        raw = OmegaConf.merge(raw, values or {})
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{job}: {_one_sentence(error)}{_suggest(str(error), schema)}") from error
    except (AssertionError, AttributeError) as error:  # all that OmegaConf says of a typed node that is null or missing
        raise ConfigError(
            f"{job}: one of {' '.join(overrides)} sets something below a field that is null or not set yet; set the whole "
            "field in a recipe or another group's YAML"
        ) from error
    finally:
        GlobalHydra.instance().clear()
        GlobalHydra.instance().hydra = before
    return load(schema, raw)


def load(schema: type[T], raw: Any) -> T:
    """Turn a composed config (or a plain mapping) into a frozen `schema`; ConfigError in one sentence."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        merged = OmegaConf.merge(_schema_node(schema), raw)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"{missing[0]} must be set: add {missing[0]}=... to the command line or the recipe")
        plain = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_one_sentence(error)) from error
    return typing.cast(T, _freeze(plain, schema, ""))


def _freeze(value: Any, hint: Any, key: str) -> Any:
    """Build what the hint declares from plain containers: frozen dataclasses, tuples, dicts, scalars."""
    if value is None:
        return None
    if dataclasses.is_dataclass(hint):
        kind = typing.cast(type[Any], hint)
        hints = typing.get_type_hints(kind)
        _refuse_unknown(value, tuple(hints), key)
        return kind(
            **{f.name: _freeze(value[f.name], hints[f.name], f"{key}{f.name}.") for f in dataclasses.fields(kind)}
        )
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return _freeze(value, next(argument for argument in arguments if argument is not type(None)), key)
    if isinstance(value, list):
        items = [_freeze(element, arguments[0] if arguments else Any, key) for element in value]
        return tuple(items) if typing.get_origin(hint) is tuple else items
    if isinstance(value, dict):
        item = arguments[1] if len(arguments) == 2 else Any
        return {name: _freeze(element, item, f"{key}{name}.") for name, element in value.items()}
    return value


def _refuse_unknown(value: Mapping[str, Any], known: tuple[str, ...], key: str) -> None:
    """Refuse a field that the schema does not have, with the nearest that it has."""
    for name in value:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {key}{near[0]}?" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"{key}{name} is not a field; {hint}")


def _one_sentence(error: BaseException) -> str:
    """Keep what names the key and the reason of a Hydra or OmegaConf message, without its layout."""
    variable = re.search(r"Environment variable '(\w+)' not found", str(error))
    if variable is not None:
        key = re.search(r"full_key: (\S+)", str(error))
        return f"the environment variable {variable[1]} must be set: {key[1] if key else 'the config'} reads it"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("object_type=", "Set the environment", "See https"))]
    text = "; ".join(lines).split("; Config search path:")[0].replace("full_key: ", "key ").replace(".;", ";")
    cause = error.__cause__
    if cause is not None and str(cause).splitlines()[:1] and str(cause).splitlines()[0] not in text:
        text += f" ({str(cause).splitlines()[0]})"
    return text or type(error).__name__


def _suggest(message: str, schema: type[Any]) -> str:
    """Name the field nearest to one that does not exist."""
    unknown = re.search(r"Could not override '([^']+)'", message)
    if unknown is None:
        return ""
    near = difflib.get_close_matches(unknown[1], _field_names(schema, ""), 1)
    return (f"; did you mean {near[0]}?" if near else "") + "; --cfg job prints every key"


def _field_names(schema: Any, key: str) -> list[str]:
    """Return every dotted key that the schema knows."""
    names: list[str] = []
    for name, hint in typing.get_type_hints(schema).items():
        inner = next((kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)), None)
        names += [f"{key}{name}"] if inner is None else _field_names(inner, f"{key}{name}.")
    return names


def to_plain(config: Any, identity_only: bool = False) -> Any:
    """Return nested dicts, lists and scalars; `identity_only` leaves out the fields that are NOT_IDENTITY."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        names = [f.name for f in dataclasses.fields(config) if not identity_only or _is_identity(f)]
        return {name: to_plain(getattr(config, name), identity_only) for name in names}
    if isinstance(config, Mapping):
        return {str(key): to_plain(value, identity_only) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_plain(value, identity_only) for value in config]
    if isinstance(config, Enum):
        return config.value
    return str(config) if isinstance(config, Path) else config


def _is_identity(field: "dataclasses.Field[Any]") -> bool:
    return bool(field.metadata.get("identity", True))


def keep_identity(recorded: Any, config: Any) -> Any:
    """Leave out of a plain config, which an older version may have recorded, the fields that are NOT_IDENTITY in `config`."""
    if not dataclasses.is_dataclass(config) or not isinstance(recorded, Mapping):
        return recorded
    dropped = {field.name for field in dataclasses.fields(config) if not _is_identity(field)}
    return {
        name: keep_identity(value, getattr(config, name, None))
        for name, value in recorded.items()
        if name not in dropped
    }


def fingerprint(config: Any) -> str:
    """Hash everything but where it runs: the same on one machine and on a hundred."""
    return hash_plain(to_plain(config, identity_only=True))


def hash_plain(plain: Any) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def flatten(plain: Any, prefix: str = "") -> dict[str, Any]:
    """Turn nested dicts into dotted keys: {"optim": {"peak_lr": 1}} -> {"optim.peak_lr": 1}."""
    if isinstance(plain, Mapping) and plain:
        parts = [flatten(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in plain.items()]
        return {key: value for part in parts for key, value in part.items()}
    return {prefix: plain}


def run_job(job_file: str, schema: type[T], action: Callable[[T], object]) -> None:
    """Be the front door of a job: Hydra's command line around `action`, sentences instead of stack traces.

    The job is named by its file: `jobs/train_cpt.py` reads `conf/train_cpt.yaml`. Exits 1 on any LisanError.
    """
    import hydra

    path = Path(job_file).resolve()
    conf_dir, job = path.parents[1] / "conf", path.stem
    register(job, schema)

    @hydra.main(version_base="1.3", config_path=str(conf_dir), config_name=job)
    def main(raw: Any) -> None:
        with sentences():
            action(load(schema, raw))

    flags = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    if not flags:
        with sentences(), first_speaks():
            compose(conf_dir, job, schema, sys.argv[1:])
    main()


class sentences:  # noqa: N801  reads as a word where it is used
    """Turn what users can cause into one line on stderr and exit code 1; let everything else keep its trace."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, LisanError):
            sys.exit(f"{type(error).__name__}: {error}")
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            where = error.filename or "storage"
            sys.exit(
                f"ArtifactError: cannot write {where}: {error.strerror}; free space there or set storage.root elsewhere"
            )
