"""Claim: 32k Arabic pieces are learned from 100 MB of text in minutes, within 2 GB, at most 3 times as slow as a bare trainer.

Continuing a base's merges (its ids and priorities kept, pieces of the target's scripts only) against `tokenizers`'
BpeTrainer, which learns from nothing and keeps to nothing, on the same documents with the same pre-tokenizer, each in a
process of its own. The text is the Arabic below LISAN_DATA, or else the generated micro-world; where that is not enough it
is told again with other particles before and after its words, so that new words keep coming as they do in real text.

    LISAN_DATA=/path/to/data python benchmarks/expand.py
    python benchmarks/expand.py --mb 5 --pieces 2000
"""

import argparse
import csv
import gzip
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from lisan.records.records import Document
from lisan.tokenizer.expand import bpe
from lisan.tokenizer.expand.base import open_base
from lisan.tokenizer.expand.config import VocabularySize
from lisan.tokenizer.expand.probes import CODE
from lisan.tokenizer.expand.vocabulary_size import count_target_words, learn_pieces
from lisan.tokenizer.script import script
from lisan.tokenizer.text_sample import sample_texts

MAX_RATIO = 3.0
MAX_GB = 2.0
BEFORE = ("و", "ف", "ب", "ل", "ك", "ال", "وال", "بال", "لل", "س")
AFTER = ("ها", "هم", "نا", "كم", "ه", "ي", "ات", "ين", "ون", "ة")
VARIED_RATIO = 0.15
"Share of the words of a repetition that get a particle, at each end."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=100.0, help="megabytes of text to learn on")
    parser.add_argument(
        "--pieces", type=int, default=32_768, help="new pieces, and pieces of the trainer beyond 256 bytes"
    )
    parser.add_argument("--child", nargs=2, metavar=("WHICH", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        which, folder = options.child
        print(json.dumps(measure(which, Path(folder), options.pieces)))
        return
    with TemporaryDirectory() as scratch:
        write_text(Path(scratch), int(options.mb * 1e6))
        results = {which: run_child(which, scratch, options.pieces) for which in ("trainer", "lisan")}
    sys.exit(report(results))


def write_text(folder: Path, num_bytes: int) -> None:
    """Write one JSON document a line up to that many bytes of text."""
    documents, size, rounds, chance = list(read_documents()), 0, 0, random.Random(0)
    with (folder / "documents.jsonl").open("w", encoding="utf-8") as file:
        while size < num_bytes:
            for text in documents:
                told = text if rounds == 0 else vary(text, chance)
                file.write(json.dumps(told, ensure_ascii=False) + "\n")
                size += len(told.encode())
                if size >= num_bytes:
                    break
            rounds += 1
    origin = "LISAN_DATA" if "LISAN_DATA" in os.environ else "the micro-world"
    print(f"{size / 1e6:.0f} MB, {rounds} tellings of {len(documents):,} documents of {origin}", flush=True)


def vary(text: str, chance: random.Random) -> str:
    """Put a particle before or after some words."""
    words = text.split(" ")
    for index, word in enumerate(words):
        if word.isalpha():
            first = chance.choice(BEFORE) if chance.random() < VARIED_RATIO else ""
            last = chance.choice(AFTER) if chance.random() < VARIED_RATIO else ""
            words[index] = first + word + last
    return " ".join(words)


def read_documents() -> Iterator[str]:
    if "LISAN_DATA" not in os.environ:
        from lisan.microworld.config import WorldConfig
        from lisan.microworld.sources import generate

        yield from (record.text for record in generate("ar_articles", WorldConfig()) if isinstance(record, Document))
        return
    folder = Path(os.environ["LISAN_DATA"]) / "mono"
    for name in ("ar_almuqtabas.jsonl.gz", "arz_wiki_09.jsonl.gz", "arz_wiki_10.jsonl.gz"):
        with gzip.open(folder / name, "rt", encoding="utf-8") as file:
            yield from (json.loads(line)["text"] for line in file)
    with gzip.open(folder / "ary_marsum_a.csv.gz", "rt", encoding="utf-8") as file:
        yield from (row["text"] for row in csv.DictReader(file))


def run_child(which: str, folder: str, num_pieces: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--pieces", str(num_pieces), "--child", which, folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(which: str, folder: Path, num_pieces: int) -> dict[str, float]:
    start, processor = time.perf_counter(), time.process_time()
    learned = learn_with_trainer(folder, num_pieces) if which == "trainer" else learn_on_base(folder, num_pieces)
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - processor,
        "gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "pieces": learned,
    }


def read_texts(folder: Path) -> Iterator[str]:
    with (folder / "documents.jsonl").open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def learn_with_trainer(folder: Path, num_pieces: int) -> int:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + num_pieces, min_frequency=2, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(read_texts(folder), trainer)
    return int(tokenizer.get_vocab_size()) - 256


def learn_on_base(folder: Path, num_pieces: int) -> int:
    documents = (Document(str(index), text, "ar", "ar") for index, text in enumerate(read_texts(folder)))
    texts = sample_texts(documents, 100_000_000, 0)
    definition, family = read_base()
    target = script(("arabic",))
    words = family.count_words(definition, texts, target)
    size = VocabularySize(num_pieces=num_pieces, target_fertility=None, knee=None, max_pieces=num_pieces, min_count=2)
    learned = learn_pieces(family, definition, words, count_target_words(texts, target), target, size)
    family.append_learned(definition, learned, ["<|im_start|>"], words)
    return len(learned)


def read_base() -> tuple[bpe.Definition, Any]:
    """Return GPT-NeoX's tokenizer from LISAN_DATA, or one learned on a little source code."""
    if "LISAN_DATA" in os.environ:
        base = open_base("base", Path(os.environ["LISAN_DATA"]) / "tokenizers" / "gpt-neox-olmo-50k")
        return base.definition, base.family
    definition = bpe.learn(CODE * 2, 400, ["<|endoftext|>"], 2)
    return {
        **definition,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    }, bpe


def report(results: dict[str, dict[str, float]]) -> int:
    print(f"{'':8} {'seconds':>8} {'cpu s':>8} {'GB':>6} {'pieces':>8}")
    for which, row in results.items():
        print(f"{which:8} {row['seconds']:8.1f} {row['cpu_seconds']:8.1f} {row['gb']:6.2f} {row['pieces']:8,.0f}")
    ratio = results["lisan"]["seconds"] / results["trainer"]["seconds"]
    peak = results["lisan"]["gb"]
    print(f"ratio {ratio:.2f} (bar {MAX_RATIO:g}), peak {peak:.2f} GB (bar {MAX_GB:g})")
    return int(ratio > MAX_RATIO or peak > MAX_GB)


if __name__ == "__main__":
    main()
