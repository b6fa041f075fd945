"""Lists the config groups of a job, the YAML files of each, and its recipes, without Hydra."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lisan.core.errors import ConfigError

RECIPE = "recipe"


def read_groups(conf_dir: Path, job: str) -> dict[str, str | None]:
    """Return the groups of a job, each with its default choice."""
    defaults = _read(conf_dir / f"{job}.yaml").get("defaults") or ()
    return {group: choice for entry in defaults if isinstance(entry, dict) for group, choice in entry.items()}


def list_choices(conf_dir: Path, group: str, job: str, schema: type[Any]) -> list[str]:
    """Return the files of a group that set only fields of the job; of recipes, those whose comment names no other job."""
    files = sorted((conf_dir / group).glob("*.yaml"))
    return [
        file.stem
        for file in files
        if not _foreign_keys(file, schema) and (group != RECIPE or job in (_jobs_of(file) or {job}))
    ]


def check_recipe(conf_dir: Path, job: str, schema: type[Any], overrides: Sequence[str]) -> None:
    """Refuse a recipe that sets fields the job does not have, and name the job that it is for."""
    names = [argument.partition("=")[2] for argument in overrides if re.match(r"\+{0,2}recipe=", argument)]
    for name in names:
        file = conf_dir / RECIPE / f"{name}.yaml"
        foreign = _foreign_keys(file, schema) if file.exists() else []
        if not foreign:
            continue
        theirs = sorted(_jobs_of(file) - {job})
        known = ", ".join(list_choices(conf_dir, RECIPE, job, schema)) or "none"
        if theirs:
            raise ConfigError(
                f"recipe={name} is for {' and '.join(theirs)}: python jobs/{theirs[0]}.py recipe={name}; recipes of {job}: {known}"
            )
        raise ConfigError(f"recipe={name} sets {foreign[0]}, which is not a field of {job}; recipes of {job}: {known}")


def _foreign_keys(file: Path, schema: type[Any]) -> list[str]:
    """Return the keys that a file of the global package sets and the schema does not have."""
    if not re.search(r"^# @package _global_", file.read_text(encoding="utf-8"), re.MULTILINE):
        return []
    known = {field.name for field in dataclasses.fields(schema)} | {"defaults", "hydra"}
    return [key for key in _read(file) if key not in known]


def _jobs_of(file: Path) -> set[str]:
    """Return the jobs in the commands of a recipe's first comment."""
    comments = re.match(r"(?:#.*\n)*", file.read_text(encoding="utf-8"))
    return set(re.findall(r"jobs/(\w+)\.py", comments[0] if comments else ""))


def _read(file: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        return {}  # Hydra reports the error
    return found if isinstance(found, dict) else {}
