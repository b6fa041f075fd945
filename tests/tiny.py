"""A world small enough to train on within a test: ragged bilingual records, their tokenizer and tokens, two-layer models.

Everything is made from a seed by the real stages, in this process, in a few seconds, with nothing fetched. Laws, golden
trajectories and module tests share it.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import torch.distributed as dist
import torch.multiprocessing
from bilingual import ARABIC, ENGLISH
from safetensors.torch import load_file

from lisan.cluster.config import Precision
from lisan.cluster.worker import Worker
from lisan.core.artifact import Artifact, Ref, Store
from lisan.core.seed import stream
from lisan.core.stage import Run, SilentRun, StorageConfig, run_stage
from lisan.core.storage import Location
from lisan.data.config import EncodeConfig, Overflow, PackingConfig
from lisan.data.encode_tokens import TOKENS
from lisan.model.config import ModelConfig, ShapeConfig
from lisan.model.load import make_random_model
from lisan.model.quiet import quiet_transformers
from lisan.model.weights.load_shards import load_shards
from lisan.records.kinds import RecordKind
from lisan.records.records import Conversation, Document, Preference, Question, Turn, to_table
from lisan.tokenizer.expand.config import TokenizerConfig
from lisan.tokenizer.expand.expand_tokenizer import TOKENIZER
from lisan.train.config import DpoConfig, TrainConfig, parents_of
from lisan.train.options import LoopConfig, OptimConfig
from lisan.train.run import TrainJob, run_worker

CONTEXT = 64
SHAPE = ShapeConfig(num_layers=2, hidden_size=32, intermediate_size=64, num_heads=2, num_kv_heads=1, max_positions=128)
LOOP = LoopConfig(num_steps=6, step_rows=8, micro_rows=4, checkpoint_every=3, log_every=1)
OPTIM = OptimConfig(peak_lr=5e-3, warmup_steps=2)
ALONE = Worker(threads=1)
WORDS = {"en": " ".join(ENGLISH).split(), "ar": " ".join(ARABIC).split()}


def make_model(config: ModelConfig, vocabulary_size: int, special_ids: dict[str, int | None], seed: int) -> Any:
    """Return a model of `config.shape` with its seeded random weights loaded."""
    model, drawn = make_random_model(config, vocabulary_size, special_ids, seed)
    load_shards(model, [drawn])
    return model


def silent(_: str) -> None:
    """Say nothing."""


@contextmanager
def no_run(*_: object) -> Iterator[Run]:
    yield SilentRun()


class Recorder(SilentRun):
    """A run that keeps what it is told; it pickles into other processes."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}
        self.checkpoints: list[int] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.steps.setdefault(step or 0, {}).update(metrics)

    def log_checkpoint(self, step: int, uri: str, num_bytes: int, digest: str) -> None:  # noqa: ARG002
        self.checkpoints.append(step)

    def curve(self, name: str) -> list[float]:
        return [self.steps[step][f"train/{name}"] for step in self.taken]

    @property
    def taken(self) -> list[int]:
        """Steps that this process took; of one that it went on from it tells only what was read."""
        return sorted(step for step, metrics in self.steps.items() if "train/loss" in metrics)


def sentence(language: str, *labels: str | int) -> str:
    """Return 1 to 20 words of a language, the same for the same labels."""
    random = stream(0, language, *labels)
    return " ".join(random.choices(WORDS[language], k=random.randint(1, 20)))


def conversation(source: str, index: int) -> Conversation:
    language = source[:2]
    turns = [
        Turn(role, sentence(language, source, index, turn))
        for turn, role in enumerate(("user", "assistant") * (1 + index % 2))
    ]
    return Conversation(f"{source}-{index}", tuple(turns), source, language)


def preference(source: str, index: int) -> Preference:
    language = source[:2]
    prompt = (Turn("user", " ".join(sentence(language, source, index).split()[:4])),)
    chosen, rejected = (
        " ".join(sentence(language, source, index, side).split()[:5]) for side in ("chosen", "rejected")
    )
    return Preference(f"{source}-{index}", prompt, chosen, rejected, source, language)


def question(source: str, index: int) -> Question:
    language = source[:2]
    choices = tuple(" ".join(sentence(language, source, index, choice).split()[:4]) for choice in range(4))
    return Question(f"{source}-{index}", sentence(language, source, index), choices, index % 4, source, language)


def document(source: str, index: int) -> Document:
    return Document(f"{source}-{index}", sentence(source[:2], source, index), source, source[:2])


MAKERS: dict[RecordKind, Callable[[str, int], Any]] = {
    RecordKind.documents: document,
    RecordKind.conversations: conversation,
    RecordKind.preferences: preference,
    RecordKind.questions: question,
}
SUFFIX = {"documents": "text", "conversations": "chats", "preferences": "pairs", "questions": "questions"}


def make_store(root: str, num_records: int = 80) -> Store:
    """Build corpus, tokenizer and tokens of each kind under a root, with the stages that users run."""
    store = Store(root)
    storage = StorageConfig(root=root)
    draft = store.begin(Ref.parse("corpus/tiny@v1"), {"of": "tests"}, ())
    languages: dict[str, Any] = {}
    for kind, make in MAKERS.items():
        for source in (f"{language}_{SUFFIX[kind]}" for language in WORDS):
            languages[source] = {"language": source[:2]}
            for split, start, stop in (("train", 0, num_records), ("validation", num_records, num_records + 20)):
                write_part(draft.location, kind, source, split, [make(source, index) for index in range(start, stop)])
    draft.commit({"sources": languages})
    run_stage(
        TOKENIZER,
        TokenizerConfig(
            name="tiny",
            corpus="corpus/tiny@v1",
            sources=("en_text", "ar_text"),
            num_pieces=640,
            storage=storage,
        ),
        no_run,
        silent,
    )
    for kind in (RecordKind.documents, RecordKind.conversations, RecordKind.preferences):
        encode(store, kind)
    return store


def write_part(location: Location, kind: RecordKind, source: str, split: str, records: list[Any]) -> None:
    place = location / kind / source / split / "part-00000.parquet"
    place.file_system.create_dir(place.full_path.rpartition("/")[0], recursive=True)
    pq.write_table(to_table(records, kind), place.full_path, filesystem=place.file_system)


def encode(store: Store, kind: RecordKind, tokenizer: str = "tokenizer/tiny@v1", **changes: Any) -> Artifact:
    overflow = Overflow.split if kind is RecordKind.documents else Overflow.drop
    values = {
        "name": str(kind),
        "corpus": "corpus/tiny@v1",
        "tokenizer": tokenizer,
        "kind": kind,
        "context_length": CONTEXT,
        "packing": PackingConfig(overflow=overflow),
        "storage": StorageConfig(root=store.root.root),
    }
    return run_stage(TOKENS, EncodeConfig(**{**values, **changes}), no_run, silent)


def train_config(store: Store, kind: str = "documents", **changes: Any) -> Any:
    """Return a training config for the tokens of a kind; `loop` and `optim` take dicts of what differs from LOOP and OPTIM."""
    for name, default in (("loop", LOOP), ("optim", OPTIM)):
        changes[name] = dataclasses.replace(default, **changes.get(name, {}))
    optim, num_steps = changes["optim"], changes["loop"].num_steps
    if 0 < num_steps < optim.warmup_steps:
        # The rate of the first steps stays that of the longer run.
        rate = optim.peak_lr * num_steps / optim.warmup_steps
        changes["optim"] = dataclasses.replace(optim, peak_lr=rate, warmup_steps=num_steps)
    values = {
        "name": "test",
        "tokens": f"tokens/{kind}@v1",
        "precision": Precision.float32,
        "save_precision": Precision.float32,
        "model": ModelConfig(shape=SHAPE, tokenizer="tokenizer/tiny@v1", init_std=0.2),
        "storage": StorageConfig(root=store.root.root),
    }
    schema = DpoConfig if kind == "preferences" else TrainConfig
    return schema(**{**values, **changes})


def make_job(store: Store, config: Any, folder: Path | str) -> TrainJob:
    """Resolve a config into what a worker needs, with checkpoints and model in `folder`."""
    place = Location(str(folder))
    parents = tuple(store.open(ref) for ref in parents_of(config))
    return TrainJob(config, parents[0], parents, place / "checkpoints", place / "model", Recorder())


def train_alone(store: Store, config: Any, folder: Path, worker: Worker = ALONE) -> Recorder:
    """Train in this process and return what the run was told."""
    job = make_job(store, config, folder)
    run_worker(job, worker)
    assert isinstance(job.run, Recorder)
    return job.run


def train_as_pair(jobs: Sequence[TrainJob], folder: Path, num_workers: int = 2) -> list[Recorder]:
    """Run jobs one after the other on some processes over gloo and return what the first rank's runs were told."""
    start_together(train_all, (list(jobs), str(folder)), folder, num_workers)
    return [read_run(folder / f"{index}.json") for index in range(len(jobs))]


def train_all(jobs: list[TrainJob], folder: str) -> None:
    """Be one of the processes: run jobs one after the other."""
    rank, num_workers = dist.get_rank(), dist.get_world_size()
    for index, job in enumerate(jobs):
        run_worker(job, Worker(rank=rank, world_size=num_workers, local_rank=rank, threads=1))
        if rank == 0:
            Path(folder, f"{index}.json").write_text(json.dumps(job.run.steps))  # type: ignore[attr-defined]


def start_together(work: Callable[..., None], args: tuple[Any, ...], folder: Path, num_workers: int = 2) -> None:
    """Call a function in some processes that are a process group over gloo."""
    folder.mkdir(parents=True)
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.multiprocessing.spawn(_be_rank, (num_workers, str(folder), work, args), nprocs=num_workers)
    if threads is None:
        del os.environ["OMP_NUM_THREADS"]


def _be_rank(rank: int, num_workers: int, folder: str, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=num_workers)
    work(*args)
    dist.barrier()  # a peer that leaves early aborts the others
    dist.destroy_process_group()


def read_run(file: Path) -> Recorder:
    """Return what a run of another process was told."""
    run = Recorder()
    run.steps = {int(step): metrics for step, metrics in json.loads(file.read_text()).items()}
    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of the model that a run left in a folder."""
    return load_file(folder / "model" / "model.safetensors")


def largest_difference(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def save_model(model: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write config.json and model.safetensors in `dtype`, as transformers itself does."""
    quiet_transformers()
    model.to(dtype).save_pretrained(folder)


def generate_greedily(model: Any, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """Return the ids of transformers' greedy reply: the reference for vLLM and llama.cpp."""
    ids = torch.tensor([list(prompt)])
    reply = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False)
    found: list[int] = reply[0, len(prompt) :].tolist()
    return found
