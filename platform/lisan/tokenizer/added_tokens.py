"""The tokens that the files beside a vocabulary add to it, under the ids that these files state.

In: a folder with `added_tokens.json`, `added_tokens_decoder` of `tokenizer_config.json`, or the name of a role's token. Out: a
`tokenizer.json` that holds them. No id is changed: a token that two files number differently is a DataError.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lisan.core.errors import DataError
from lisan.tokenizer.tokenizer_json import Definition, special_token, vocabulary

CONFIG = "tokenizer_config.json"
ROLES_FILE = "special_tokens_map.json"
ADDED = "added_tokens.json"
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
_SWITCHES = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a file holds, an empty one where there is no file."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is cut off or not JSON ({error}); copy or download it again") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} holds a {type(found).__name__}, expected a JSON object; copy or download it again")
    return found


def read_role_tokens(folder: Path) -> dict[str, str]:
    """Return the special tokens that the JSON files of a folder name, by role."""
    named: dict[str, str] = {}
    for name in (ROLES_FILE, CONFIG):
        raw = read_json(folder / name)
        named |= {role: _content(raw[role]) for role in ROLES if raw.get(role)}
    return named


def complete(definition: Definition, folder: Path) -> Definition:
    """Return the tokenizer with all tokens that the folder adds; the same object where it has them already.

    A token of a role that no file numbers gets the next free id, as transformers gives it. A file of another kind, without a
    vocabulary, is returned as it is.
    """
    if not (definition.get("model") or {}).get("vocab"):
        return definition
    listed: list[Definition] = list(definition.get("added_tokens") or ())
    ids = vocabulary(definition) | {token["content"]: token["id"] for token in listed}
    owners = {index: content for content, index in ids.items()}
    known = {token["content"] for token in listed}
    for token in [*_read_added(folder), *_name_roles(folder)]:
        content, index = token["content"], token.setdefault("id", ids.get(token["content"], max(owners) + 1))
        if ids.setdefault(content, index) != index:
            raise DataError(
                f"{folder} gives {content!r} the id {index:,} beside a vocabulary that gives it {ids[content]:,}; keep one of them"
            )
        if owners.setdefault(index, content) != content:
            raise DataError(
                f"{folder} gives the id {index:,} to {content!r} and to {owners[index]!r}; change one of them"
            )
        if content not in known:
            known.add(content)
            listed.append(token)
    changed = len(listed) > len(definition.get("added_tokens") or ())
    return _pin({**definition, "added_tokens": listed} if changed else definition, folder)


def _read_added(folder: Path) -> list[Definition]:
    """Return the tokens of the folder by id; `added_tokens.json` counts only beside a config without a list, as in transformers."""
    config = read_json(folder / CONFIG)
    try:
        if "added_tokens_decoder" in config:
            stated = [
                {**special_token(raw["content"], int(index)), **{key: raw[key] for key in _SWITCHES if key in raw}}
                for index, raw in config["added_tokens_decoder"].items()
            ]
        else:
            special = {*read_role_tokens(folder).values(), *_further(config), *_further(read_json(folder / ROLES_FILE))}
            stated = [
                {**special_token(content, int(index)), "special": content in special}
                for content, index in read_json(folder / ADDED).items()
            ]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{folder} does not list its added tokens as contents with ids ({type(error).__name__}: {error}); correct "
            f"{ADDED} or added_tokens_decoder in {CONFIG}, or download them again"
        ) from error
    return sorted(stated, key=lambda token: int(token["id"]))


def _further(raw: Mapping[str, Any]) -> list[str]:
    listed = raw.get("additional_special_tokens") or raw.get("extra_special_tokens") or ()
    return [_content(token) for token in (listed.values() if isinstance(listed, Mapping) else listed)]


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, Mapping) else token)


def _name_roles(folder: Path) -> list[Definition]:
    """Return the tokens of roles, as yet without ids."""
    contents = dict.fromkeys(read_role_tokens(folder).values())
    return [{key: value for key, value in special_token(content, 0).items() if key != "id"} for content in contents]


def _pin(definition: Definition, folder: Path) -> Definition:
    """Enter added tokens into the vocabulary where the library would number them otherwise: it counts on from its size."""
    pieces = vocabulary(definition)
    outside = [token for token in definition.get("added_tokens") or () if token["content"] not in pieces]
    if [token["id"] for token in outside] == list(range(len(pieces), len(pieces) + len(outside))):
        return definition
    if isinstance(definition["model"]["vocab"], list):
        moved = next(token for place, token in enumerate(outside, len(pieces)) if token["id"] != place)
        raise DataError(
            f"{folder} gives {moved['content']!r} the id {moved['id']:,} and its Unigram list of pieces ends before "
            f"{len(pieces):,}; save it again with a token for every id, or choose another base"
        )
    entered = pieces | {token["content"]: token["id"] for token in outside}
    return {**definition, "model": {**definition["model"], "vocab": entered}}
