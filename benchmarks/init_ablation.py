"""Claim: after the vocabulary grew, new rows that begin as the mean of their old pieces learn faster than random ones.

A small English model is trained from nothing, its vocabulary is expanded for Arabic, and it goes on training on both
languages, each time with the same rows of text in the same order, from new embedding rows that begin in another way. Held-out
loss and bits per byte are measured after 0, 50, 100 and 300 steps. All of it runs in this process, on a CPU, through the
stages that users run, so that a second call goes on where the first one stopped:

    LISAN_DATA=/path/to/data python benchmarks/init_ablation.py --root /tmp/ablation --out docs

Two shared cores, 2026-11-21, 3,072 new pieces, Arabic nats per token after 0, 100 and 300 steps: mean 9.95, 6.86, 6.54; random
9.23, 7.04, 6.61; global_mean 9.27, 7.01, 6.55; similarity 9.57, 6.83, 6.50; donor 8.56, 6.76, 6.53. English directly after the
growth: mean 6.10, the others 6.22 to 6.43 (docs/init_ablation.png). One seed.

Exits 1 unless the mean is below random in Arabic loss after the last step.
"""

import argparse
import io
import json
import math
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "platform"))

import torch
import torch.distributed.checkpoint as dcp
import yaml

from lisan.core.artifact import Artifact, Kind, Ref, Store
from lisan.core.stage import StorageConfig, TrackingConfig
from lisan.corpus.reader import read_records
from lisan.evaluate.config import EvalConfig, TaskConfig, TaskKind
from lisan.evaluate.results import aggregate
from lisan.evaluate.run_evals import score_items
from lisan.evaluate.tasks import make_items
from lisan.model.score import Scorer
from lisan.recipes.run_pipeline import PipelineConfig, StepConfig, compose_step, run_pipeline
from lisan.records.kinds import RecordKind
from lisan.records.records import Document
from lisan.tokenizer.expand.neighbours import write_neighbours
from lisan.tokenizer.tokenizer import load_tokenizer
from lisan.train.config import parents_of
from lisan.train.setup.base_model import open_places, prepare_model

METHODS = ("mean", "random", "global_mean", "similarity", "donor")
POINTS = (0, 50, 100, 300)
EVERY = 50
"Steps between checkpoints, all of which are kept."
CONTEXT = 256
NUM_NEIGHBOURS = 10
ARABIC = {"ar_muqtabas": 0.3, "ar_cidar": 0.05, "arz_wiki": 0.15, "ary_marsum": 0.15}
ENGLISH = {"en_c4": 0.1, "en_wiki": 0.1, "en_gutenberg": 0.05}
PARALLEL = {"par_un": 0.1}
SHAPE = {"num_layers": 2, "hidden_size": 128, "intermediate_size": 384, "num_heads": 4, "num_kv_heads": 2}
"1.2 M parameters at 6k pieces: 300 steps are four minutes of one busy core."
MIX = {**ARABIC, **ENGLISH, **PARALLEL}
CORPUS = "corpus/ablation@v1"
TASKS = {
    "ar": TaskConfig(kind=TaskKind.bits_per_byte, sources=("ar_muqtabas", "arz_wiki", "ary_marsum"), max_records=40),
    "en": TaskConfig(kind=TaskKind.bits_per_byte, sources=("en_c4",), max_records=15),
}


def preparation(step_rows: int, has_donor: bool) -> dict[str, StepConfig]:
    """Return the steps that every method shares: corpus, tokenizers, tokens, the English base, and a donor of both languages."""
    both = {"corpus": CORPUS, "measured_split": "train"}
    base = {"optim": {"peak_lr": 4e-3, "schedule": "wsd", "warmup_steps": 20}, "loop": loop(250, 2 * step_rows)}
    steps = {
        "corpus": step(
            "build_corpus", {"data": "none"}, name="ablation", validation_ratio=0.05, sources=choose_sources()
        ),
        "base_tokenizer": step(
            "expand_tokenizer", {"vocabulary": "new"}, name="ablation-en", sources=[*ENGLISH], num_pieces=3072, **both
        ),
        "tokenizer": step(
            "expand_tokenizer",
            name="ablation-enar",
            base="tokenizer/ablation-en@v1",
            sources=[*ARABIC],
            protected_sources=["en_c4"],
            num_pieces=3072,
            **both,
        ),
        "base_tokens": encode("base", "tokenizer/ablation-en@v1", [*ENGLISH]),
        "base": train("base", "nano", {"shape": SHAPE, "tokenizer": "tokenizer/ablation-en@v1"}, **base),
        "tokens": encode("enar", "tokenizer/ablation-enar@v1", [*MIX]),
    }
    if has_donor:
        steps["donor_tokenizer"] = step(
            "expand_tokenizer", {"vocabulary": "new"}, name="ablation-donor", sources=[*MIX], num_pieces=6144, **both
        )
        steps["donor_tokens"] = encode("donor", "tokenizer/ablation-donor@v1", [*MIX])
        own = {"shape": SHAPE, "tokenizer": "tokenizer/ablation-donor@v1"}
        steps["donor"] = train("donor", "nano", own, mix={"weights": MIX}, **base)
    return steps


def choose_sources() -> dict[str, Any]:
    """Return those of conf/data/real.yaml that are trained or measured on."""
    known = yaml.safe_load((REPOSITORY / "conf" / "data" / "real.yaml").read_text(encoding="utf-8"))["sources"]
    return {source: known[source] for source in MIX}


def step(job: str, use: Mapping[str, str] | None = None, **values: Any) -> StepConfig:
    return StepConfig(job=job, use={"cluster": "local", **(use or {})}, set=values)


def encode(name: str, tokenizer: str, sources: list[str]) -> StepConfig:
    return step(
        "encode_tokens",
        name=f"ablation-{name}",
        corpus=CORPUS,
        tokenizer=tokenizer,
        sources=sources,
        context_length=CONTEXT,
    )


def train(name: str, shape: str, model: Mapping[str, Any], tokens: str = "", **values: Any) -> StepConfig:
    tokens = f"tokens/ablation-{tokens or name}@v1"
    return step("train_cpt", {"model": shape}, name=f"ablation-{name}", tokens=tokens, model=dict(model), **values)


def loop(num_steps: int, step_rows: int) -> dict[str, int]:
    size = {"num_steps": num_steps, "step_rows": step_rows, "micro_rows": step_rows}
    return {**size, "checkpoint_every": EVERY, "keep_checkpoints": num_steps, "log_every": EVERY}


def trial(method: str, root: Path, step_rows: int) -> StepConfig:
    """Return the step that trains the base on with new rows that begin in one way."""
    tokenizer = str(root / "neighbours") if method == "similarity" else "tokenizer/ablation-enar@v1"
    new_rows = {"method": method, **({"donor": "model/ablation-donor@v1"} if method == "donor" else {})}
    return train(
        "donated" if method == "donor" else method,  # ablation-donor is the donor itself
        "from",
        {"path": "model/ablation-base@v1", "tokenizer": tokenizer, "new_rows": new_rows},
        tokens="enar",
        mix={"weights": MIX, "max_epochs": 20},
        optim={"peak_lr": 2e-3, "schedule": "wsd", "warmup_steps": 10, "final_lr_ratio": 0.1, "decay_ratio": 0.2},
        loop=loop(max(POINTS), step_rows),
    )


def find_neighbours(root: Path, store: Store) -> None:
    """Put the tokenizer and the neighbours of its new pieces into a folder of their own."""
    folder = root / "neighbours"
    if (folder / "neighbours.json").exists():
        return
    start = time.monotonic()
    place = store.open(Ref(Kind.tokenizer, "ablation-enar", "v1")).location.local_folder()
    shutil.copytree(place, folder, dirs_exist_ok=True)
    records = read_records(store.open(Ref.parse(CORPUS)), RecordKind.documents, "train", (*ARABIC, *PARALLEL))
    texts = (record.text for record in records if isinstance(record, Document))
    print(f"  neighbours: {write_neighbours(folder, texts, NUM_NEIGHBOURS)}, {time.monotonic() - start:.1f} s")


@torch.no_grad()
def measure(scorer: Scorer, items: Mapping[str, list[Any]]) -> dict[str, float]:
    """Return held-out loss (nats per token) and bits per byte of each language."""
    config = EvalConfig(name="ablation", model="-", corpus=CORPUS, tasks=TASKS, context_length=CONTEXT)
    found = {}
    for name, task in TASKS.items():
        metrics = aggregate(task, score_items(scorer.eval(), items[name], config))
        found[f"{name}/bits_per_byte"] = metrics["bits_per_byte"]
        found[f"{name}/loss"] = metrics["bits_per_byte"] * math.log(2) * metrics["bytes_per_token"]
    return found


def follow(config: Any, store: Store, model: Artifact, items: Mapping[str, list[Any]]) -> Iterator[dict[str, float]]:
    """Yield what the model measures at each of POINTS: as it was prepared, then from its checkpoints."""
    places = open_places(config, tuple(store.open(ref) for ref in parents_of(config)))
    scorer = Scorer(prepare_model(config, places).model)
    for point in POINTS:
        if point:
            read_weights(scorer, Path(store.checkpoints(model.ref).full_path) / f"step_{point:08d}")
        yield {"step": point, **measure(scorer, items)}


def read_weights(scorer: Scorer, checkpoint: Path) -> None:
    """Put the weights of a checkpoint into a model."""
    saved = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    state = {name: value for name, value in scorer.state_dict().items() if f"model.{name}" in saved}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load({"model": state}, checkpoint_id=checkpoint, no_dist=True)
    scorer.load_state_dict(state, strict=False)


def make_table(curves: Mapping[str, list[dict[str, float]]]) -> str:
    columns = ("ar/loss", "ar/bits_per_byte", "en/loss", "en/bits_per_byte")
    lines = [["method", "steps", *columns], ["---", *["---:"] * 5]]
    for method, points in curves.items():
        lines += [[method, str(point["step"]), *(f"{point[column]:.3f}" for column in columns)] for point in points]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(curves: Mapping[str, list[dict[str, float]]], file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from PIL import Image

    figure, axes = pyplot.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")
    for axis, language, name in zip(axes, ("ar", "en"), ("Arabic", "English"), strict=True):
        for method, points in curves.items():
            values = [point[f"{language}/bits_per_byte"] for point in points]
            axis.plot(POINTS, values, marker="o", markersize=3.5, label=method.replace("_", " "))
        axis.set(title=name, xlabel="steps of continued pretraining", ylabel="held-out bits per byte")
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    Image.open(drawn).convert("RGB").quantize(64).save(file, optimize=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="where artifacts go; an absolute path")
    parser.add_argument("--out", type=Path, required=True, help="where init_ablation.png and .json go")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument(
        "--step-rows", type=int, default=4, help=f"rows of {CONTEXT} tokens a step; twice as many for the base"
    )
    return parser.parse_args()


def run_trials(root: Path, methods: Sequence[str], step_rows: int) -> dict[str, list[dict[str, float]]]:
    """Train from every beginning and return what each measured at POINTS."""
    store, conf = Store(str(root)), REPOSITORY / "conf"
    where: dict[str, Any] = {"storage": StorageConfig(root=str(root)), "tracking": TrackingConfig()}
    run_pipeline(PipelineConfig(steps=preparation(step_rows, "donor" in methods), **where), conf)
    if "similarity" in methods:
        find_neighbours(root, store)
    pipeline = PipelineConfig(steps={method: trial(method, root, step_rows) for method in methods}, **where)
    models = run_pipeline(pipeline, conf)
    tokenizer = load_tokenizer(store.open(Ref(Kind.tokenizer, "ablation-enar", "v1")))
    corpus = store.open(Ref.parse(CORPUS))
    items = {
        name: make_items(task, read_records(corpus, RecordKind.documents, task.split, task.sources), tokenizer)
        for name, task in TASKS.items()
    }
    configs = {method: compose_step(method, pipeline, conf) for method in methods}
    return {method: list(follow(configs[method], store, models[method], items)) for method in methods}


def main() -> None:
    arguments = parse_arguments()
    curves = run_trials(arguments.root.expanduser().resolve(), arguments.methods, arguments.step_rows)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "init_ablation.json").write_text(json.dumps(curves, indent=1))
    plot(curves, arguments.out / "init_ablation.png")
    print(make_table(curves))
    if {"mean", "random"} <= set(arguments.methods):
        judge(curves)


def judge(curves: Mapping[str, list[dict[str, float]]]) -> None:
    """Say how the mean stands to random, and exit 1 when it is not below."""
    mean, random = (curves[method][-1]["ar/loss"] for method in ("mean", "random"))
    print(
        f"ratio {mean / random:.3f} (mean {mean:.3f}, random {random:.3f} nats per Arabic token after {max(POINTS)} steps)"
    )
    if not mean < random:
        sys.exit(1)


if __name__ == "__main__":
    main()
