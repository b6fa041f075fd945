"""A tokenizer on storage: the Hugging Face folder that training, evaluation and vLLM open, and what expansion added.

In: a finished `tokenizer.json`, the special tokens' roles, a chat template; a base may also be a bare `tokenizer.model`, and
have tokens in `added_tokens.json` or in its config (see added.py).
Out: a folder that `AutoTokenizer` loads, with `expansion.json` beside it. Always: a loaded tokenizer gives the ids that
`tokenizer.json` states, also beside another model. `expand/expand_tokenizer.py` writes; every later stage reads through
`load_tokenizer`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lisan.core.artifact import Artifact
from lisan.core.errors import DataError, first_line
from lisan.core.integrity import fetch_folder
from lisan.core.references import local_path
from lisan.core.storage import Location
from lisan.tokenizer import sentencepiece
from lisan.tokenizer.added_tokens import ADDED, CONFIG, ROLES_FILE, complete, read_json, read_role_tokens
from lisan.tokenizer.tokenizer_json import Definition, open_definition

TOKENIZER = "tokenizer.json"
SENTENCEPIECE = "tokenizer.model"
EXPANSION = "expansion.json"
TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True, kw_only=True, slots=True)
class Expansion:
    """Pieces that a tokenizer adds to its base: everything that resizing a model needs."""

    method: str
    "`continued_bpe`, `continued_sentencepiece_bpe` or `continued_unigram` for an expansion; `bpe` learned from nothing."
    base: str | None
    base_hash: str | None
    "sha256 of the base's tokenizer.json."
    base_size: int
    "Ids below it are the base's own; 0 when there is no base."
    num_ids: int
    "Ids in use, 0 .. num_ids - 1."
    size: int
    "Embedding rows for the model: num_ids rounded up to `pad_to_multiple`."
    new_ids: tuple[int, ...]
    pieces: dict[int, tuple[int, ...]]
    "The base's pieces of every new id, for mean-of-pieces rows; empty when there is no base."
    hash: str
    "sha256 of this tokenizer.json."


def load_tokenizer(place: Artifact | Path | str) -> Any:
    """Return the transformers tokenizer of an artifact, a local folder or a hub id.

    The generic class opens it: the class that a model's type suggests may rebuild the pre-tokenizer.
    """
    from transformers import PreTrainedTokenizerFast

    folder = tokenizer_folder(fetch_folder(place.location) if isinstance(place, Artifact) else place)
    definition, is_own = _parse_definition(folder)
    try:
        if is_own:
            return PreTrainedTokenizerFast.from_pretrained(str(folder))
        opened, template = open_definition(definition), _own_template(folder)
    except Exception as error:  # the library raises no narrower class for a definition that it does not take
        raise DataError(f"{folder} holds a tokenizer that does not open ({error}); download it again") from error
    return PreTrainedTokenizerFast(tokenizer_object=opened, chat_template=template, **read_roles(folder))


def _own_template(folder: Path) -> Any:
    if (folder / TEMPLATE).exists():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    return read_json(folder / CONFIG).get("chat_template")


def read_definition(folder: Path) -> bytes:
    """Return tokenizer.json, or its equivalent of tokenizer.model, with the tokens that other files add."""
    definition, is_own = _parse_definition(folder)
    return (folder / TOKENIZER).read_bytes() if is_own else dump_definition(definition)


def _parse_definition(folder: Path) -> tuple[Definition, bool]:
    """Return the definition of the tokenizer, and whether it is tokenizer.json as it lies there."""
    if (folder / TOKENIZER).exists():
        own = read_json(folder / TOKENIZER)
        whole = complete(own, folder)
        return whole, whole is own
    model = sentencepiece.read_model((folder / SENTENCEPIECE).read_bytes(), folder)
    is_llama = model.model_type == sentencepiece.BPE
    adds_bos = read_json(folder / CONFIG).get("add_bos_token", is_llama)
    return complete(sentencepiece.to_definition(model, bool(adds_bos)), folder), False


def dump_definition(definition: Mapping[str, Any]) -> bytes:
    return json.dumps(definition, ensure_ascii=False, indent=1).encode()


def open_tokenizer(place: Location | str) -> Any:
    return _load(str(_local(place)))


@lru_cache(maxsize=2)
def _load(place: str) -> Any:
    return load_tokenizer(place)


def _local(place: Location | str) -> Path | str:
    """Return a folder of this machine, fetched when the tokenizer lies on an object store, or the hub id as it is."""
    return fetch_folder(place) if isinstance(place, Location) else place


def tokenizer_hash(place: Location | str) -> str:
    """Return the sha256 of the tokenizer.json of an artifact, a local folder or a hub id."""
    return digest(read_definition(tokenizer_folder(_local(place))))


def read_vocabulary_size(place: Location | str) -> int | None:
    """Return the embedding rows of the model that a tokenizer lies beside; None where it lies beside none."""
    size: int | None = read_json(tokenizer_folder(_local(place)) / "config.json").get("vocab_size")
    return size


def highest_id(tokenizer: Any) -> int:
    return int(max(tokenizer.get_vocab().values()))


def check_ids(where: str, highest: int, num_rows: int | None, tokenizer: Any) -> None:
    """Refuse token ids that the embedding matrix of a model has no row for; `num_rows` null knows of no model."""
    if num_rows is not None and highest >= num_rows:
        raise DataError(
            f"{where} may hold the id {highest:,} ({tokenizer.convert_ids_to_tokens(highest)!r}) and the model has {num_rows:,} "
            "embedding rows; expand its tokenizer, which gives every id a row, or take that token out of the text and the "
            "chat template"
        )


def load_expansion(place: Artifact | Path | str) -> Expansion:
    """Read what expansion added to the tokenizer of an artifact or local folder."""
    folder = fetch_folder(place.location) if isinstance(place, Artifact) else Path(place)
    if not (folder / EXPANSION).exists():
        raise DataError(f"{folder} holds no {EXPANSION}; make the tokenizer with expand_tokenizer")
    raw = read_json(folder / EXPANSION)
    pieces = {int(index): tuple(old) for index, old in raw["pieces"].items()}
    return Expansion(**{**raw, "new_ids": tuple(raw["new_ids"]), "pieces": pieces})


def tokenizer_folder(place: Path | str) -> Path:
    """Return a local folder with the tokenizer files of a local folder or hub id."""
    name, folder = str(place), local_path(str(place))
    if folder is not None and _has_tokenizer(folder):
        return folder
    if folder is not None:
        raise DataError(f"tokenizer {name} holds no {TOKENIZER}; name a folder with one, a reference or a hub id")
    from huggingface_hub import snapshot_download

    patterns = [TOKENIZER, SENTENCEPIECE, CONFIG, ROLES_FILE, ADDED, TEMPLATE]
    try:
        fetched = Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise DataError(
            f"tokenizer {name} is no folder and not readable from the hub ({reason}); check the name or download it"
        ) from error
    if not _has_tokenizer(fetched):
        raise DataError(f"tokenizer {name} has no {TOKENIZER} on the hub; choose one with a fast tokenizer")
    return fetched


def _has_tokenizer(folder: Path) -> bool:
    return (folder / TOKENIZER).exists() or (folder / SENTENCEPIECE).exists()


def read_roles(folder: Path) -> dict[str, str]:
    """Return the special tokens that a base declares, by role; a bare tokenizer.json declares none."""
    declared: dict[str, str] = {}
    if not (folder / TOKENIZER).exists() and (folder / SENTENCEPIECE).exists():
        declared |= sentencepiece.read_roles(sentencepiece.read_model((folder / SENTENCEPIECE).read_bytes(), folder))
    return declared | read_role_tokens(folder)


def write_folder(folder: Path, definition: Mapping[str, Any], roles: Mapping[str, str], template: str) -> str:
    """Write the tokenizer files; return the sha256 of tokenizer.json.

    The generic class name keeps `AutoTokenizer` from rebuilding the tokenizer after the type of the model beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **roles,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),
    }
    data = dump_definition(definition)
    (folder / TOKENIZER).write_bytes(data)
    for name, content in ((CONFIG, config), (ROLES_FILE, dict(roles))):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    (folder / TEMPLATE).write_text(template, encoding="utf-8")
    return digest(data)


def digest(data: bytes) -> str:
    """Return the sha256 by which a tokenizer.json is known."""
    return hashlib.sha256(data).hexdigest()


def write_expansion(folder: Path, expansion: Expansion) -> None:
    (folder / EXPANSION).write_text(json.dumps(asdict(expansion), ensure_ascii=False), encoding="utf-8")
