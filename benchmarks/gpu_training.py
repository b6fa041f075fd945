"""Claim: one GPU trains an 8B model with LoRA at 12,500 tokens/s, and all of a 1B model at 45 % of its peak.

Llama shapes with random weights and made tokens, rows of one document without padding, through the loop that trains: sharding,
scorer, objective, optimizer, meter. The first intervals (compilation, allocation) are left out.

    python benchmarks/gpu_training.py
    python benchmarks/gpu_training.py --cases 1b-full 8b-lora --micro-rows 2 --activation-checkpointing selective
    python benchmarks/gpu_training.py --tiny        # the same way on a CPU with a very small model: no figures, no bars

Prints a table with hardware, date and the denominator of MFU; exits 1 below a bar. Without a GPU it says so and exits 0.
MFU is of model FLOPs (`lisan.model.flops`) and of a peak in bf16 (`train.metrics.hardware`), for float8 too. What this GPU or its
environment cannot do is said in the place of its figures.
"""

import argparse
import gc
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "platform"))

import numpy as np
import torch
import yaml

from lisan.cluster.precision import find_precision
from lisan.cluster.worker import ProcessGroup, Worker, worker_from_environment
from lisan.core.errors import ConfigError
from lisan.core.stage import SilentRun
from lisan.core.storage import Location
from lisan.data.rows import RowBatch
from lisan.model.adapters.lora import attach_random_adapter
from lisan.model.attention.packed import check_attention
from lisan.model.config import ActivationCheckpointing, Attention, LoraConfig, ModelConfig, ShapeConfig, ShardingConfig
from lisan.model.float8 import check_float8, use_float8
from lisan.model.flops import Work, count_flops
from lisan.model.load import make_random_model
from lisan.model.parallel.fsdp import shard
from lisan.model.score import Scorer
from lisan.model.weights.load_shards import Parts, load_shards
from lisan.train.loop import train
from lisan.train.metrics.hardware import find_peak
from lisan.train.metrics.run_log import RunLog
from lisan.train.objectives import CausalLm
from lisan.train.optim import make_optimizer
from lisan.train.options import LoopConfig, OptimConfig
from lisan.train.plan import TrainPlan

VOCABULARY = 128_256
"Pieces of Llama 3."
WARM_INTERVALS = 2
HEADER = {"title": "benchmark", "planned": {"made": 1.0}, "languages": {"made": "und"}, "facts": {}}
LOG_EVERY = 5
LORA = LoraConfig(rank=16)


@dataclass(frozen=True)
class Case:
    shape: str
    "Of conf/model."
    is_lora: bool
    float8: bool = False
    least_tokens: float = 0.0
    "Bar, tokens/s."
    least_mfu: float = 0.0


CASES = {
    "1b-full": Case("llama_1b", is_lora=False, least_mfu=0.45),
    "1b-full-float8": Case("llama_1b", is_lora=False, float8=True),
    "1b-lora": Case("llama_1b", is_lora=True),
    "8b-lora": Case("llama_8b", is_lora=True, least_tokens=12_500),
    "8b-lora-float8": Case("llama_8b", is_lora=True, float8=True),
    "8b-full": Case("llama_8b", is_lora=False),
}
"8b-full takes 128 GB for weights, gradients and moments in fp32: run it by name where there is room."
USUAL = ("1b-full", "1b-full-float8", "1b-lora", "8b-lora", "8b-lora-float8")
TINY = {"tiny-full": Case("nano", is_lora=False), "tiny-lora": Case("nano", is_lora=True)}


@dataclass(frozen=True)
class MadeOrder:
    """Rows of random pieces, one document each; the loop takes it for the order of a tokens artifact."""

    step_rows: int
    context_length: int
    vocabulary: int
    sources: tuple[str, ...] = ("made",)

    @property
    def languages(self) -> Mapping[str, str]:
        return {"made": "none"}

    @property
    def num_rows(self) -> Mapping[str, int]:
        return {"made": 2**40}

    @property
    def num_tokens(self) -> Mapping[str, int]:
        return {"made": 2**40 * self.context_length}

    def source_of(self, row_ids: Any) -> Any:
        return np.zeros_like(row_ids)

    def read(self, position: int, rank: int, world_size: int) -> Iterator[RowBatch]:
        share = self.step_rows // world_size
        while True:
            row_ids = np.arange(position + rank * share, position + (rank + 1) * share)
            ids = np.random.default_rng(int(row_ids[0])).integers(self.vocabulary, size=(share, self.context_length))
            yield RowBatch(row_ids, ids.astype(np.int32), ids.astype(np.int32), ((self.context_length,),) * share)
            position += self.step_rows

    def check(self, step: int, rank: int, row_ids: Any) -> None:
        """Rows that were made here are those that were asked for."""

    def follow(self, position: int, row_ids: Any) -> int:
        return position + len(row_ids)


class EnoughError(Exception):
    """Ends a run that has been measured, before it would write a checkpoint."""


class Watch(SilentRun):
    """Keeps the speed of each interval and ends the run after enough of them."""

    def __init__(self, num_intervals: int) -> None:
        self.num_intervals, self.speeds = num_intervals, list[float]()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:  # noqa: ARG002
        self.speeds.append(metrics["train/tokens_per_second"])
        if len(self.speeds) == self.num_intervals:
            raise EnoughError


def make_weights(parts: Parts, device: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Draw each shard where it will lie: what a seed makes on the CPU would take minutes."""
    for name, part in parts.items():
        sides = [side.stop - side.start for side in part]
        matrix = torch.empty(sides, device=device)
        yield name, matrix.fill_(1.0) if len(sides) == 1 else matrix.normal_(std=0.02)


def build(case: Case, arguments: argparse.Namespace, device: str) -> Scorer:
    """Make the model of a case as a training run does."""
    shape = ShapeConfig(**yaml.safe_load((REPOSITORY / "conf" / "model" / f"{case.shape}.yaml").read_text())["shape"])
    model, _ = make_random_model(ModelConfig(shape=shape, tokenizer="made"), arguments.vocabulary, {}, 0)
    sources: list[Any] = [partial(make_weights, device=device)]
    if case.is_lora:
        wrapper, drawn = attach_random_adapter(model, LORA, seed=0)
        model, sources = wrapper.base_model.model, [drawn, *sources]
    if case.float8:
        use_float8(model)
    sharding = ShardingConfig(
        activation_checkpointing=ActivationCheckpointing(arguments.activation_checkpointing), compile=arguments.compile
    )
    scorer = shard(Scorer(model, Attention(arguments.attention)), device, find_precision(device).precision, sharding)
    load_shards(model, sources)
    return scorer


def measure(case: Case, arguments: argparse.Namespace, worker: Worker) -> tuple[float, float]:
    """Return the tokens/s of a case and the FLOPs that a token asks for."""
    with ProcessGroup(worker), TemporaryDirectory() as scratch:
        scorer = build(case, arguments, worker.device)
        flops = flops_per_token(scorer.model, arguments.context)
        config = OptimConfig(warmup_steps=1)
        watch = Watch(WARM_INTERVALS + arguments.intervals)
        num_steps = (watch.num_intervals + 1) * LOG_EVERY
        step_rows = arguments.micro_rows * arguments.accumulate
        plan = TrainPlan(
            config=LoopConfig(
                num_steps=num_steps,
                step_rows=step_rows,
                micro_rows=arguments.micro_rows,
                log_every=LOG_EVERY,
                checkpoint_every=num_steps,
            ),
            optim=config,
            num_steps=num_steps,
            order=MadeOrder(step_rows, arguments.context, arguments.vocabulary),
            objective=CausalLm(),
            checkpoints=Location(scratch),
            log=RunLog(watch, Location(scratch), {**HEADER, "num_steps": num_steps}),
        )
        with suppress(EnoughError):
            train(scorer, make_optimizer(scorer, config), plan, worker)
        return float(np.median(watch.speeds[WARM_INTERVALS:])), flops


def flops_per_token(model: Any, context: int) -> float:
    """Return what a token costs forwards and backwards in a row of one document."""
    flops = count_flops(model)
    assert flops is not None, "all matrices of a Llama are linear layers"
    return flops.training(Work(num_tokens=context, num_pairs=context**2, num_labels=context - 1)) / context


def check(case: Case, arguments: argparse.Namespace, device: str) -> None:
    """Refuse a case that this machine cannot compute."""
    check_attention(Attention(arguments.attention), device, find_precision(device).precision.dtype)
    if case.float8:
        check_float8(device)


def report(name: str, case: Case, arguments: argparse.Namespace, worker: Worker, peak: float) -> bool:
    """Measure a case, print its line, and tell whether it reached its bars; one with bars that is refused did not."""
    try:
        check(case, arguments, worker.device)
        speed, flops = measure(case, arguments, worker)
    except ConfigError as error:
        print(f"{name:16} not measured: {error}", flush=True)
        return not (case.least_tokens or case.least_mfu)
    tflops = speed * flops / 1e12
    mfu = tflops / peak
    memory = torch.cuda.max_memory_allocated() / 2**30 if worker.device != "cpu" else 0.0
    passed = speed >= case.least_tokens and mfu >= case.least_mfu
    bars = [f">= {case.least_tokens:,.0f} tokens/s"] * bool(case.least_tokens)
    bars += [f">= {case.least_mfu:.0%} MFU"] * bool(case.least_mfu)
    said = f"{'pass' if passed else 'FAIL'} {', '.join(bars)}" if bars else ""
    print(f"{name:16} {speed:12,.0f} {tflops:9.2f} {mfu:6.1%} {memory:8.1f} GiB  {said}", flush=True)
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=USUAL)
    parser.add_argument("--context", type=int, default=4096, help="tokens of a row (default: 4096)")
    parser.add_argument("--micro-rows", type=int, default=2, help="rows computed at a time (default: 2)")
    parser.add_argument("--accumulate", type=int, default=4, help="micro batches of a step (default: 4)")
    parser.add_argument("--intervals", type=int, default=4, help="intervals of 5 steps measured (default: 4)")
    parser.add_argument(
        "--activation-checkpointing", choices=[str(which) for which in ActivationCheckpointing], default="none"
    )
    parser.add_argument("--attention", choices=[str(which) for which in Attention], default="flex")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--tiny", action="store_true", help="the whole way on a CPU with a very small model")
    parser.set_defaults(vocabulary=VOCABULARY)
    arguments = parser.parse_args()
    cases = {name: CASES[name] for name in arguments.cases}
    if arguments.tiny:
        cases = TINY
        small = {"context": 64, "attention": "sdpa", "compile": False, "vocabulary": 640, "intervals": 1}
        vars(arguments).update(small)
    elif not torch.cuda.is_available():
        print("not measured: no GPU")
        return 0
    worker = Worker(threads=1) if arguments.tiny else worker_from_environment()
    hardware = "CPU" if arguments.tiny else torch.cuda.get_device_name()
    precision = find_precision(worker.device).precision
    peak = find_peak(worker.device, precision.dtype)
    print(f"{hardware}, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}; MFU of {peak.said}")
    print(
        f"context {arguments.context}, {arguments.micro_rows} rows x {arguments.accumulate}, attention {arguments.attention}, "
        f"activation checkpointing {arguments.activation_checkpointing}, "
        f"{'compiled' if arguments.compile else 'not compiled'}, {precision.short} "
        "unless named float8"
    )
    print(f"{'case':16} {'tokens/s':>12} {'TFLOP/s':>9} {'MFU':>6} {'memory':>12}  bar")
    passed = []
    for name, case in cases.items():
        gc.collect()  # the case before is held by cycles
        if worker.device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        passed.append(report(name, case, arguments, worker, peak.tflops))
    return 0 if all(passed) or arguments.tiny else 1


if __name__ == "__main__":
    sys.exit(main())
