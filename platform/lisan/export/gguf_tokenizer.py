"""Describes a tokenizer as GGUF metadata, so that llama.cpp gives the ids of training, or refuses it.

Every embedding row has a piece; padding rows get filler pieces. One exception: llama.cpp does not compose text, so that a
tokenizer with NFC gives equal ids for composed text only.

llama.cpp has a fixed list of named pre-tokenizers, each with a regular expression; the names here are those that split any text
as the tokenizer does.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lisan.core.errors import ConfigError
from lisan.tokenizer.chat.chat_template import end_of_turn_id
from lisan.tokenizer.expand import bpe, metaspace
from lisan.tokenizer.script import SPACE
from lisan.tokenizer.sentencepiece import PieceKind
from lisan.tokenizer.tokenizer import load_tokenizer, read_definition, tokenizer_folder
from lisan.tokenizer.tokenizer_json import Definition, iter_steps, texts_by_id, vocabulary

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LINES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + LINES
QWEN_2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + LINES
QWEN_35 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + LINES
GPT_2 = "GPT-2"
"Stands for the regular expression inside the library's ByteLevel."
DIGITS = "digits, "

PRE_TYPES = {
    # The optional sign before a word may be a mark in Qwen 3.5's expression and not in ours; a mark there begins the word
    # itself in ours, so that both cut alike.
    (bpe.SPLIT_PATTERN, False): "qwen35",
    (QWEN_35, False): "qwen35",
    (QWEN_2, False): "qwen2",
    (LLAMA_3, True): "llama-bpe",
    (LLAMA_3, False): "smaug-bpe",
    (GPT_2, False): "gpt-2",
    (DIGITS + GPT_2, False): "smollm",
}
"llama.cpp's name by regular expression and `ignore_merges` (a word that is a piece is taken whole)."
COMPOSED = {"type": "NFC"}
SPACES: tuple[Definition, ...] = (
    {"type": "Prepend", "prepend": SPACE},
    {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
)
"Normalisation steps of SentencePiece, which llama.cpp also does."
UNREACHED = -1e9
"Score of a piece that no merge produces."


def describe_tokenizer(folder: Path, num_rows: int) -> dict[str, Any]:
    """Return the metadata for a model with `num_rows` embedding rows; ConfigError when llama.cpp has no such tokenizer."""
    definition = json.loads(read_definition(tokenizer_folder(folder)))
    if bpe.recognises(definition):
        check_normaliser(definition, (COMPOSED,), folder)
        kind: dict[str, Any] = {
            "ggml.model": "gpt2",
            "ggml.pre": pre_type(definition),
            "ggml.merges": _merges(definition),
        }
    elif metaspace.recognises(definition):
        check_normaliser(definition, (COMPOSED, *SPACES), folder)
        kind = {
            "ggml.model": "llama",
            "ggml.pre": "default",
            "ggml.scores": _scores(definition, num_rows),
            "ggml.add_space_prefix": adds_space(definition),
        }
    else:
        raise ConfigError(
            f"GGUF is written for byte-level BPE and SentencePiece BPE, the tokenizer of {folder} is another "
            f"({(definition.get('model') or {}).get('type')}); leave gguf out of formats"
        )
    return {**kind, **_pieces(definition, num_rows), **_roles(load_tokenizer(folder), folder)}


def composes_text(folder: Path) -> bool:
    """Tell whether a tokenizer composes text (NFC), which llama.cpp does not: shadda, fatha becomes fatha, shadda."""
    return COMPOSED in iter_steps(json.loads(read_definition(tokenizer_folder(folder))).get("normalizer"))


def check_normaliser(definition: Definition, known: Sequence[Definition], folder: Path) -> None:
    """Raise ConfigError for a normalisation step that is not in `known`."""
    for step in iter_steps(definition.get("normalizer")):
        if step not in known:
            raise ConfigError(
                f"the tokenizer of {folder} changes text by {step['type']} before it is cut, which llama.cpp does not; "
                "leave gguf out of formats"
            )


def pre_type(definition: Definition) -> str:
    """Return llama.cpp's name of a byte-level tokenizer's pre-tokenizer."""
    cut = ""
    for step in iter_steps(definition["pre_tokenizer"]):
        match step:
            case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
                cut += pattern
            case {"type": "Digits", "individual_digits": True}:
                cut += DIGITS
            case {"type": "ByteLevel", "add_prefix_space": False}:
                cut += GPT_2 if step.get("use_regex", True) else ""
            case _:
                cut += json.dumps(step)
    ignores_merges = bool(definition["model"].get("ignore_merges"))
    if (cut, ignores_merges) not in PRE_TYPES:
        raise ConfigError(
            f"llama.cpp has no pre-tokenizer that cuts words as this tokenizer does ({cut!r}, ignore_merges={ignores_merges}); "
            f"GGUF is written for those of {', '.join(sorted(set(PRE_TYPES.values())))}; leave gguf out of formats"
        )
    return PRE_TYPES[cut, ignores_merges]


def adds_space(definition: Definition) -> bool:
    """Tell whether the tokenizer adds a space before a text."""
    prepends = any(step["type"] == "Prepend" for step in iter_steps(definition.get("normalizer")))
    schemes = {step.get("prepend_scheme") for step in iter_steps(definition.get("pre_tokenizer"))}
    return prepends or not schemes.isdisjoint({"always", "first"})


def _pieces(definition: Definition, num_rows: int) -> dict[str, Any]:
    added = {token["id"]: token for token in definition["added_tokens"]}
    texts = texts_by_id(definition)
    texts += [""] * (num_rows - len(texts))
    kinds = []
    for index, text in enumerate(texts):
        if index in added:
            texts[index] = added[index]["content"]
            kinds.append(PieceKind.control if added[index]["special"] else PieceKind.user_defined)
        elif not text:
            texts[index] = f"[PAD{index}]"
            kinds.append(PieceKind.unused)
        else:
            is_byte = (
                bool(definition["model"].get("byte_fallback")) and text.startswith("<0x") and len(text) == len("<0x00>")
            )
            kinds.append(PieceKind.byte if is_byte else PieceKind.normal)
    if len(texts) > num_rows:
        raise ConfigError(
            f"the tokenizer has {len(texts)} ids and the model {num_rows} embedding rows; resize the model first"
        )
    unknown = definition["model"].get("unk_token")
    if unknown in texts:
        kinds[texts.index(unknown)] = PieceKind.unknown
    return {"ggml.tokens": texts, "ggml.token_type": [int(kind) for kind in kinds]}


def _merges(definition: Definition) -> list[str]:
    return [rule if isinstance(rule, str) else " ".join(rule) for rule in definition["model"]["merges"]]


def _scores(definition: Definition, num_rows: int) -> list[float]:
    """Return scores that give llama.cpp the order of the merges: minus the rank of each piece's merge."""
    scores = [UNREACHED] * num_rows
    pieces = vocabulary(definition)
    for rank, rule in reversed(list(enumerate(definition["model"]["merges"]))):
        piece = "".join(rule.split(" ") if isinstance(rule, str) else rule)
        scores[pieces[piece]] = -float(rank)
    return scores


def _roles(tokenizer: Any, folder: Path) -> dict[str, Any]:
    """Return special ids, the chat template, and whether BOS and EOS are added to a text."""
    plain, marked = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    end = end_of_turn_id(tokenizer)
    ids = {
        "bos": tokenizer.bos_token_id,
        # Without one llama.cpp takes a fixed id, which here is a piece of text.
        "eos": end if tokenizer.eos_token_id is None else tokenizer.eos_token_id,
        "eot": end,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    if ids["eos"] is None:
        raise ConfigError(
            f"the tokenizer of {folder} has no eos_token, without which llama.cpp never stops; declare one"
        )
    found: dict[str, Any] = {f"ggml.{role}_token_id": index for role, index in ids.items() if index is not None}
    if tokenizer.chat_template is not None:
        found["chat_template"] = str(tokenizer.chat_template)
    adds = {"bos": marked[0] != plain[0] and marked[0] == ids["bos"], "eos": marked[-1] != plain[-1]}
    return {**found, **{f"ggml.add_{role}_token": is_added for role, is_added in adds.items()}}
