"""Composes YAML and command-line overrides with Hydra and loads them into a frozen dataclass.

The dataclass is the schema and has every default; `conf/<job>.yaml` has the choices. Lists become tuples, and
`__post_init__` checks the values. Every failure is one ConfigError sentence that names the key; keys that were renamed
stand in `lisan/core/renamed.py`.
"""

import dataclasses
import math
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from lisan.core.command_line.choices import check_recipe
from lisan.core.command_line.config_errors import explain
from lisan.core.command_line.overrides import bare, explain_unknown, quote_text
from lisan.core.errors import ConfigError

T = TypeVar("T")
SIGNED = types.MappingProxyType({"signed": True})
"Metadata of a dataclass field whose numbers may be negative."


def register(name: str, schema: type[Any]) -> None:
    """Put the schema in Hydra's ConfigStore as `<name>_schema`, so that every field can be overridden."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name=f"{name}_schema", node=_schema_node(schema))


def _schema_node(schema: type[Any]) -> Any:
    from omegaconf import OmegaConf

    node = OmegaConf.structured(_thaw(schema))
    _open_mappings(node, schema)
    return node


def _open_mappings(node: Any, schema: Any) -> None:
    """Let dictionaries take new keys on the command line without a +."""
    from omegaconf import OmegaConf

    for name, hint in typing.get_type_hints(schema).items():
        kind, inner = bare(hint), node._get_node(name)
        if typing.get_origin(kind) is dict:
            OmegaConf.set_struct(inner, False)
        elif dataclasses.is_dataclass(kind) and not (inner._is_none() or inner._is_missing()):
            _open_mappings(inner, kind)


@cache
def _thaw_cached(schema: Any) -> type[Any]:
    """Return an unfrozen copy of a dataclass and of all nested ones: OmegaConf refuses overrides of frozen ones."""
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
    """Compose `conf/<job>.yaml` with overrides, merge `values` into it and load it; ConfigError in one sentence."""
    return load(schema, compose_raw(conf_dir, job, schema, overrides, values))


def compose_raw(
    conf_dir: Path, job: str, schema: type[Any], overrides: Sequence[str], values: Mapping[str, Any] | None = None
) -> Any:
    """Compose a config without loading it: required fields may be missing."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    register(job, schema)
    check_recipe(conf_dir, job, schema, overrides)
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with _composing(job, schema, overrides):
            with initialize_config_dir(str(conf_dir), version_base="1.3"):
                raw = hydra_compose(job, overrides=quote_text(schema, overrides))
            OmegaConf.set_struct(raw, False)  # `load` refuses unknown fields; dictionaries take new keys
            return OmegaConf.merge(raw, values or {})
    finally:
        GlobalHydra.instance().clear()
        GlobalHydra.instance().hydra = before


@contextmanager
def _composing(job: str, schema: type[Any], overrides: Sequence[str]) -> Iterator[None]:
    """Keep the text of YAML scalars, and turn errors of Hydra, OmegaConf and YAML into one ConfigError sentence."""
    from hydra._internal.config_repository import CachingConfigRepository as Repository
    from hydra.errors import HydraException
    from omegaconf import _utils as reader
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    standard, group_exists = reader.get_yaml_loader, Repository.group_exists
    reader.get_yaml_loader = lambda: _keep_text(standard())
    plain = _plain_fields(schema)
    Repository.group_exists = lambda self, config_path: config_path not in plain and group_exists(self, config_path)
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{job}: {explain(error, schema)}") from error
    except (AssertionError, AttributeError) as error:  # from OmegaConf, for a typed node that is null or missing
        raise ConfigError(
            f"{job}: one of {' '.join(overrides)} sets something below a field that is null or not set yet; set the whole "
            "field in a recipe or another group's YAML"
        ) from error
    finally:
        reader.get_yaml_loader, Repository.group_exists = standard, group_exists


def _plain_fields(schema: type[Any]) -> set[str]:
    """Return the fields that are no nested configs: Hydra would read `model=a` as a choice of conf/model in every job."""
    return {name for name, hint in typing.get_type_hints(schema).items() if not dataclasses.is_dataclass(bare(hint))}


def _keep_text(loader: Any) -> Any:
    """Make a YAML loader keep `1e3`, `1.10`, `1_000` and `on` as text, which the field converts to its type."""

    def construct(self: Any, node: Any) -> Any:
        value = standard[node.tag](self, node)
        return value if not isinstance(value, bool) and str(value) == node.value else node.value

    tags = [f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool")]
    standard = {tag: loader.yaml_constructors[tag] for tag in tags}
    for tag in tags:
        loader.add_constructor(tag, construct)
    return loader


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
        raise ConfigError(explain(error, schema)) from error
    return typing.cast(T, _freeze(plain, schema, ""))


def _freeze(value: Any, hint: Any, key: str) -> Any:
    """Convert plain containers to the declared type: frozen dataclasses, tuples, dicts, scalars."""
    if value is None:
        return None
    hint = bare(hint)
    if dataclasses.is_dataclass(hint):
        return _make(value, typing.cast(type[Any], hint), key)
    arguments = typing.get_args(hint)
    if isinstance(value, list):
        items = [_freeze(element, arguments[0] if arguments else Any, key) for element in value]
        return tuple(items) if typing.get_origin(hint) is tuple else items
    if isinstance(value, dict):
        item = arguments[1] if len(arguments) == 2 else Any
        return {name: _freeze(element, item, f"{key}{name}.") for name, element in value.items()}
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def _make(value: Mapping[str, Any], kind: type[Any], key: str) -> Any:
    hints = typing.get_type_hints(kind)
    _refuse_unknown(value, tuple(hints), key)
    made = kind(**{f.name: _freeze(value[f.name], hints[f.name], f"{key}{f.name}.") for f in dataclasses.fields(kind)})
    for field in dataclasses.fields(kind):
        _check_number(getattr(made, field.name), f"{key}{field.name}", field.metadata.get("signed", False))
    return made


def _check_number(value: Any, key: str, is_signed: bool) -> None:
    """Refuse a float that is not finite, and a negative number unless the field is SIGNED."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            _check_number(one, f"{key}.{name}", is_signed)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key} must be a finite number, got {value}")
    if isinstance(value, int | float) and value < 0 and not is_signed:
        raise ConfigError(f"{key} must be >= 0, got {value}")


def _refuse_unknown(value: Mapping[str, Any], known: tuple[str, ...], key: str) -> None:
    """Refuse a field that the schema does not have, and name the nearest one."""
    for name in value:
        if name not in known:
            raise ConfigError(explain_unknown(name, known, key))
