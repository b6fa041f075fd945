"""A small bilingual text, bases of three styles learned on it, and a corpus artifact that holds it."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lisan.core.artifact import Artifact, Ref, Store
from lisan.core.stage import Run, SilentRun, StorageConfig, run_stage
from lisan.corpus.records import Document, RecordKind, to_table
from lisan.tokens import bpe, tokenizer
from lisan.tokens.expand import TOKENIZER, TokenizerConfig

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


def gpt_base() -> bpe.Spec:
    """GPT-2 style: its own regex, merges as strings, an end-of-text token inside the vocabulary."""
    spec = bpe.learn(ENGLISH * 3, 340, ["<|endoftext|>"], 2)
    spec["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    spec["model"]["merges"] = [" ".join(pair) for pair in spec["model"]["merges"]]
    return spec


def llama_base() -> bpe.Spec:
    """Llama-3 style: added tokens numbered after the vocabulary and absent from it, whole words looked up first."""
    spec = bpe.learn(ENGLISH * 3, 340, [], 2)
    spec["model"]["ignore_merges"] = True
    for index, content in enumerate(("<|begin_of_text|>", "<|end_of_text|>", "<|reserved|>"), 340):
        spec["added_tokens"].append(bpe._special_token(content, index))
    return spec


def qwen_base() -> bpe.Spec:
    """Qwen style: NFC, and pieces of Arabic that begin and end inside characters."""
    spec = copy.deepcopy(bpe.learn([*ENGLISH * 3, *ARABIC], 380, SPECIAL, 3))
    spec["normalizer"] = {"type": "NFC"}
    return spec


BASES = {"gpt": gpt_base, "llama": llama_base, "qwen": qwen_base}


def write_base(folder: Path, spec: bpe.Spec, roles: Mapping[str, str] | None = None) -> str:
    tokenizer.write_folder(folder, spec, roles or {"eos_token": "<|endoftext|>"}, "")
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
