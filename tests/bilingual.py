"""A small bilingual text, bases of six styles learned on it, and a corpus artifact that holds it."""

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lisan.core.artifact import Artifact, Ref, Store
from lisan.core.stage import Run, SilentRun, StorageConfig, run_stage
from lisan.records.kinds import RecordKind
from lisan.records.records import Document, to_table
from lisan.tokenizer import tokenizer
from lisan.tokenizer.expand import bpe
from lisan.tokenizer.expand.append_pieces import OldPieces
from lisan.tokenizer.expand.config import TokenizerConfig, VocabularySize
from lisan.tokenizer.expand.expand_tokenizer import TOKENIZER
from lisan.tokenizer.expand.merges import Learned
from lisan.tokenizer.expand.tokenizer_families import find_family
from lisan.tokenizer.expand.vocabulary_size import learn_pieces
from lisan.tokenizer.script import SPACE, Script
from lisan.tokenizer.tokenizer_json import Definition, special_token

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
ENGLISH = [
    "The capital of Morocco is Rabat, and the largest city of the country is Casablanca on the Atlantic coast.",
    "Water boils at one hundred degrees; the price of bread was 12 dirhams, they said, and that wasn't cheap.",
    "In the morning the children went to the school near the river, and the teacher read them a long story.",
    "def add(first, second):\n    return first + second  # the sum of both\n",
]
ARABIC = [
    "عاصمة المغرب هي الرباط، وأكبر مدينة في المغرب هي الدار البيضاء على ساحل المحيط الأطلسي.",
    "ذهب الأطفال في الصباح إلى المدرسة القريبة من النهر، وقرأ لهم المعلم قصة طويلة عن المغرب.",
    "الكتاب على الطاولة، والمدرسة في المدينة، والمعلم في المدرسة، والأطفال في الصباح عند النهر.",
    "وُلِدَ العالِمُ سنة ١٩٣٠ في مدينة فاس، وتوفي سنة ٢٠٠١ في الرباط عاصمة المغرب.",
]
DIVERSE = [
    "الْحَمْدُ لِلَّهِ رَبِّ الْعَالَمِينَ",
    "كتـــــاب جميـــل",
    "سنة ١٩٣٠ و ۱۹۳۰",
    "hello 👋🏽 مرحبا 👨‍👩‍👧 ١٢",
    "漢字かな交じり文 العربية",
    "  for i in range(3):\n\tprint(i)\n",
    "café “quoted” – dash … naïve",
    "المغرب2024Rabat",
    "نص\u200fمع\u200cعلامات",
    "שלום עולם हिन्दी ภาษาไทย",
    "",
    " ",
    "\n\n\t ",
]


def gpt_base() -> Definition:
    """GPT-2 style: its own regex, merges as strings, an end-of-text token inside the vocabulary."""
    definition = bpe.learn(ENGLISH * 3, 340, ["<|endoftext|>"], 2)
    definition["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    definition["model"]["merges"] = [" ".join(pair) for pair in definition["model"]["merges"]]
    return definition


def llama_base() -> Definition:
    """Llama-3 style: added tokens numbered after the vocabulary and absent from it, whole words looked up first."""
    definition = bpe.learn(ENGLISH * 3, 340, [], 2)
    definition["model"]["ignore_merges"] = True
    for index, content in enumerate(("<|begin_of_text|>", "<|end_of_text|>", "<|reserved|>"), 340):
        definition["added_tokens"].append(special_token(content, index))
    return definition


def qwen_base() -> Definition:
    """Qwen style: NFC, and pieces of Arabic that begin and end inside characters."""
    definition = copy.deepcopy(bpe.learn([*ENGLISH * 3, *ARABIC], 380, SPECIAL, 3))
    definition["normalizer"] = {"type": "NFC"}
    return definition


BASES = {"gpt": gpt_base, "llama": llama_base, "qwen": qwen_base}
"Byte-level BPE."
_TO_SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_FROM_SPACE = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
_CONTROL = ("<unk>", "<s>", "</s>")


def _metaspace(scheme: str, split: bool) -> Definition:
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": split}


def llama2_base() -> Definition:
    """Llama-2 style: pieces of characters, bytes for the rest, a normaliser that puts a space before a text, no words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    learned.train_from_iterator(ENGLISH * 3, trainers.BpeTrainer(vocab_size=160, min_frequency=2, show_progress=False))
    definition: Definition = json.loads(learned.to_str())
    pieces = [*_CONTROL, *(f"<0x{byte:02X}>" for byte in range(256)), *definition["model"]["vocab"]]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    definition["model"] |= {"vocab": vocabulary, "byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    definition["added_tokens"] = [special_token(content, index) for index, content in enumerate(_CONTROL)]
    definition["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, _TO_SPACE]}
    definition["pre_tokenizer"] = None
    definition["decoder"] = {
        "type": "Sequence",
        "decoders": [_FROM_SPACE, {"type": "ByteFallback"}, {"type": "Fuse"}, _STRIP],
    }
    return definition


def mistral_base() -> Definition:
    """Mistral v3 style: the same without a normaliser, a few Arabic letters and a reserved row among the pieces."""
    definition = llama2_base()
    for piece in ("ا", "ل", "ال", "[control_1]"):
        definition["model"]["vocab"][piece] = len(definition["model"]["vocab"])
    definition["model"]["merges"].append(["ا", "ل"])
    return {**definition, "normalizer": None, "pre_tokenizer": _metaspace("first", False)}


def t5_base() -> Definition:
    """T5 style: Unigram over NFKC words, no bytes to fall back on, an added token after the list of pieces."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    learned = Tokenizer(models.Unigram())
    learned.normalizer = normalizers.NFKC()
    learned.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=list(_CONTROL), unk_token="<unk>", show_progress=False
    )
    learned.train_from_iterator(ENGLISH * 3, trainer)
    definition: Definition = json.loads(learned.to_str())
    words = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, _metaspace("always", True)]}
    definition["added_tokens"].append(special_token("<extra_id_0>", len(definition["model"]["vocab"])))
    return {**definition, "pre_tokenizer": words, "decoder": _metaspace("always", True)}


def xlmr_base() -> Definition:
    """XLM-R style: Unigram that knows some Arabic, with bytes to fall back on."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learned = Tokenizer(models.Unigram())
    learned.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    special = [*_CONTROL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.UnigramTrainer(vocab_size=420, special_tokens=special, unk_token="<unk>", show_progress=False)
    learned.train_from_iterator([*ENGLISH * 3, ARABIC[0]], trainer)
    definition: Definition = json.loads(learned.to_str())
    definition["added_tokens"] = definition["added_tokens"][:3]
    definition["model"]["byte_fallback"] = True
    definition["decoder"] = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, _metaspace("always", True)]}
    return {**definition, "pre_tokenizer": _metaspace("always", False)}


SENTENCEPIECE_BASES = {"llama2": llama2_base, "mistral": mistral_base, "t5": t5_base, "xlmr": xlmr_base}
ALL_BASES = {**BASES, **SENTENCEPIECE_BASES}


def size(num_pieces: int | None = 120, **changes: Any) -> VocabularySize:
    values = {"target_fertility": None, "knee": None, "max_pieces": 1000, "min_count": 2}
    return VocabularySize(num_pieces=num_pieces, **{**values, **changes})


def expand(
    definition: Definition, target: Script, special: tuple[str, ...] = (), num: int = 120
) -> tuple[Learned, Definition, OldPieces]:
    """Learn pieces on the Arabic lines and append them."""
    family = find_family(definition, "base")
    words = family.count_words(definition, ARABIC * 2, target)
    learned = learn_pieces(family, definition, words, 100, target, size(num))
    return learned, *family.append_learned(definition, learned, special, words)


def write_base(folder: Path, definition: Definition, roles: Mapping[str, str] | None = None) -> str:
    tokenizer.write_folder(folder, definition, roles or {"eos_token": "<|endoftext|>"}, "")
    return str(folder)


def write_corpus(root: Path, sources: dict[str, list[str]] | None = None) -> Artifact:
    store, ref = Store(str(root)), Ref.parse("corpus/small@v1")
    draft = store.begin(ref, {"of": "tests"}, ())
    sources = sources or {"ar": ARABIC, "en": ENGLISH}
    for source, texts in sources.items():
        for split in ("train", "validation"):
            documents = [Document(f"{source}-{i}", text, source, source[:2]) for i, text in enumerate(texts)]
            folder = Path(draft.location.full_path) / "documents" / source / split
            folder.mkdir(parents=True)
            pq.write_table(to_table(documents, RecordKind.documents), folder / "part-00000.parquet")
    return draft.commit({"sources": {source: {"language": source[:2]} for source in sources}})


def settings(root: Path, **changes: Any) -> TokenizerConfig:
    values = {
        "name": "small",
        "corpus": "corpus/small@v1",
        "sources": ("ar",),
        "protected_sources": ("en",),
        "num_pieces": 60,
        "storage": StorageConfig(root=str(root)),
    }
    return TokenizerConfig(**{**values, **changes})


@contextmanager
def no_run(*_: object) -> Iterator[Run]:
    yield SilentRun()


def build(root: Path, **changes: Any) -> Artifact:
    return run_stage(TOKENIZER, settings(root, **changes), no_run, say=lambda _: None)
