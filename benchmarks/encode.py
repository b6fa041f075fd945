"""Claim: `encode_tokens` from parquet to packed rows on disk costs hardly more than the tokenizer alone, and half of what
`datasets.map` and TRL's packing cost, and two cores do it nearly twice as fast as one.

The same Arabic, English and parallel text, the same tokenizer, the same cores; contestants run in turn, each in a process of
its own that is bound to its cores and warm (libraries imported, Ray started, tokenizer loaded) before its time is taken:

    LISAN_DATA=/path/to/data python benchmarks/encode.py --mb 84 --rounds 3

Exits 1 when a median ratio is below its bar.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "platform"))

import pyarrow.parquet as pq

from lisan.core.artifact import Ref, Store
from lisan.core.stage import ClusterConfig, SilentRun, StorageConfig, run_stage
from lisan.corpus.reader import list_sources, list_splits, read_records
from lisan.data.config import EncodeConfig
from lisan.data.encode_tokens import TOKENS
from lisan.records.kinds import RecordKind
from lisan.records.records import Document, to_table
from lisan.tokenizer.tokenizer import load_tokenizer

BATCHES = (16, 32, 64, 128, 512, 2048)
"Texts a call that the bare tokenizer may choose from."
BARS = {"bare": 0.90, "trl": 2.0, "cores": 1.8}
PEERS = {
    "bare": "tokenizers.encode_batch_fast alone, best batch size",
    "trl": "datasets.map and trl.pack_dataset(bfd_split)",
    "cores": "this stage on one core",
}


def main() -> int:
    arguments = parse_arguments()
    if arguments.contestant:
        print(json.dumps(CONTESTANTS[arguments.contestant](arguments)))
        return 0
    missing = [name for name in ("datasets", "trl") if find_spec(name) is None]
    if missing:
        print(f"{' and '.join(missing)} missing; install what is compared with: pip install -e '.[bench]'")
        return 2
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2 or "LISAN_DATA" not in os.environ:
        print(f"needs two cores and LISAN_DATA, got {len(cores)} and {os.environ.get('LISAN_DATA')}")
        return 2
    num_bytes, num_documents = prepare(arguments.root, arguments.mb)
    print(f"{num_bytes / 1e6:.1f} MB of text, {num_documents:,} documents, rows of {arguments.context_length}")
    print(f"cores {cores} of {os.cpu_count()}, load {os.getloadavg()[0]:.1f}, {cpu_name()}", flush=True)
    seconds: dict[str, list[float]] = {"bare": [], "ours": [], "trl": [], "ours_alone": []}
    for number in range(arguments.rounds):
        for name, taken in seconds.items():
            result = measure(name, cores[:1] if name == "ours_alone" else cores, arguments)
            taken.append(result["seconds"])
            extra = ", ".join(f"{key} {value:,}" for key, value in result.items() if key != "seconds")
            print(f"  round {number + 1} {name}: {num_bytes / 1e6 / result['seconds']:.2f} MB/s ({extra})", flush=True)
    return judge(seconds)


def judge(seconds: dict[str, list[float]]) -> int:
    """Print the median of the rounds' ratios against each peer; 1 when one is below its bar."""
    against = {"bare": seconds["bare"], "trl": seconds["trl"], "cores": seconds["ours_alone"]}
    failed = 0
    for name, theirs in against.items():
        ratios = [peer / ours for peer, ours in zip(theirs, seconds["ours"], strict=True)]
        is_met = median(ratios) >= BARS[name]
        failed |= not is_met
        shown = " ".join(f"{ratio:.2f}" for ratio in ratios)
        print(
            f"{median(ratios):.2f}x of {PEERS[name]} (rounds {shown}; bar {BARS[name]}, {'met' if is_met else 'MISSED'})"
        )
    return failed


def measure(name: str, cores: list[int], arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one contestant in a process that has these cores and nothing else."""
    threads = str(len(cores)) if name == "bare" else "1"  # the others have a process a core
    environment = {
        **os.environ,
        "RAYON_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "true" if name == "bare" else "false",
        "HF_HUB_OFFLINE": "1",
    }
    given = ["--root", arguments.root, "--context-length", arguments.context_length, "--cores", *cores]
    command = [sys.executable, __file__, "--contestant", name.removesuffix("_alone"), *map(str, given)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def tokenise_bare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time the tokenizer on texts that are in memory; its best batch size is found on a sample first."""
    os.sched_setaffinity(0, arguments.cores)
    tokenizer = load_tokenizer(arguments.root / "tokenizer")._tokenizer
    files = sorted((arguments.root / "text").glob("*.parquet"))
    texts = [text for file in files for text in pq.read_table(file, columns=["text"])["text"].to_pylist()]
    step = max(1, len(texts) // 5000)

    def encode(some: list[str], size: int) -> float:
        start = time.perf_counter()
        for place in range(0, len(some), size):
            tokenizer.encode_batch_fast(some[place : place + size], add_special_tokens=False)
        return time.perf_counter() - start

    encode(texts[::step], 64)
    batch = min(BATCHES, key=lambda size: encode(texts[::step], size))
    return {"seconds": encode(texts, batch), "batch": batch}


def encode_ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time the whole stage on Ray Data, one worker a core, after a stage of one source has started them."""
    os.sched_setaffinity(0, arguments.cores)
    os.environ["LISAN_COMMIT"] = "bench"
    store = Store(str(arguments.root / "store"))
    for kind in ("warm", "bench"):
        store.location(Ref.parse(f"tokens/{kind}@v1")).delete()
        config = EncodeConfig(
            name=kind,
            corpus=f"corpus/{kind}@v1",
            tokenizer=str(arguments.root / "tokenizer"),
            context_length=arguments.context_length,
            storage=StorageConfig(root=store.root.root),
            cluster=ClusterConfig(num_workers=len(arguments.cores)),
        )
        start = time.perf_counter()
        tokens = run_stage(TOKENS, config, no_run, print)
        seconds = time.perf_counter() - start
    facts = tokens.facts
    return {"seconds": seconds, **{key: facts[key] for key in ("tokens", "rows", "padding_ratio")}}


def no_run(*_: object) -> Any:
    return nullcontext(SilentRun())


def encode_trl(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time what users of datasets and TRL write: tokenise, pack, save as Arrow, a process a core."""
    os.sched_setaffinity(0, arguments.cores)
    import datasets
    from trl import pack_dataset

    datasets.disable_progress_bars()
    tokenizer = load_tokenizer(arguments.root / "tokenizer")
    end = [tokenizer.eos_token_id]

    def tokenise(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encoded = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False)
        return {"input_ids": [ids + end for ids in encoded["input_ids"]]}

    files = sorted(map(str, (arguments.root / "text").glob("*.parquet")))
    processes = {"num_proc": len(arguments.cores)}
    with tempfile.TemporaryDirectory(dir=arguments.root) as folder:
        start = time.perf_counter()
        text = datasets.Dataset.from_parquet(files, columns=["text"], cache_dir=f"{folder}/cache")
        encoded = text.map(tokenise, batched=True, remove_columns=["text"], **processes)
        packed = pack_dataset(encoded, arguments.context_length, strategy="bfd_split", map_kwargs=processes)
        packed.save_to_disk(f"{folder}/rows")
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens": sum(map(sum, packed["seq_lengths"])), "rows": len(packed)}


CONTESTANTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "bare": tokenise_bare,
    "ours": encode_ours,
    "trl": encode_trl,
}


def prepare(root: Path, megabytes: float) -> tuple[int, int]:
    """Make the text: of every source of the real data its share, as a corpus and as parquet files for the peers."""
    shutil.rmtree(root, ignore_errors=True)
    (root / "text").mkdir(parents=True)
    (root / "tokenizer").mkdir()
    shutil.copy(Path(os.environ["LISAN_DATA"], "tokenizers/gpt-neox-olmo-50k/tokenizer.json"), root / "tokenizer")
    roles = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (root / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(roles))
    job = [sys.executable, str(REPOSITORY / "jobs" / "build_corpus.py"), "data=real", "name=real"]
    subprocess.run([*job, f"storage.root={root}/store"], check=True, stdout=subprocess.DEVNULL)
    store = Store(str(root / "store"))
    corpus = store.open(Ref.parse("corpus/real@v1"))
    languages = list_sources(corpus, RecordKind.documents)
    whole = {
        source: list(read_records(corpus, RecordKind.documents, "train", [source]))
        for source in languages
        if "train" in list_splits(corpus, RecordKind.documents, source)
    }
    share = megabytes * 1e6 / sum(len(document.text.encode()) for some in whole.values() for document in some)
    text = {source: list(take(some, share)) for source, some in whole.items()}
    for name, chosen in (("bench", text), ("warm", {source: some[:20] for source, some in text.items()})):
        draft = store.begin(Ref.parse(f"corpus/{name}@v1"), {"share": share}, ())
        for source, some in chosen.items():
            file = Path(draft.location.full_path, "documents", source, "train", "part-00000.parquet")
            file.parent.mkdir(parents=True)
            table = to_table(some, RecordKind.documents)
            pq.write_table(table, file, compression="zstd")
            if name == "bench":  # datasets cannot read a map column
                pq.write_table(table.select(["text"]), root / "text" / f"{source}.parquet", compression="zstd")
        draft.commit({"sources": {source: {"language": languages[source]} for source in chosen}})
    sizes = [len(document.text.encode()) for some in text.values() for document in some]
    return sum(sizes), len(sizes)


def take(documents: list[Document], share: float) -> Iterator[Document]:
    """Yield a share of a source by letters; above 1 its documents come again, each turned at another place."""
    left = int(share * sum(len(document.text) for document in documents))
    for turn in count():
        for document in documents:
            if left <= 0:
                return
            cut = len(document.text) * (turn % 7) // 7
            text = (document.text[cut:] + document.text[:cut])[:left]
            left -= len(text)
            yield Document(f"{document.id}-{turn}", text, document.source, document.language)


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=84, help="megabytes of text; above 28 the text repeats")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--context-length", type=int, default=1024)
    parser.add_argument("--root", type=Path, default=Path(tempfile.gettempdir(), "lisan-encode"), help="scratch folder")
    parser.add_argument("--contestant", choices=sorted(CONTESTANTS), help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, nargs="+", default=[], help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
