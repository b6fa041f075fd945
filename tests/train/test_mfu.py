"""MFU and memory: of which peak, and how much of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import train_alone, train_config

from lisan.cluster.config import Precision
from lisan.cluster.worker import ProcessGroup, Worker
from lisan.core.artifact import Store
from lisan.core.errors import ConfigError
from lisan.core.storage import Location
from lisan.data.rows import RowBatch
from lisan.model.adapters.nf4 import quantise_blocks
from lisan.model.flops import ModelFlops, Work
from lisan.model.score import Scorer
from lisan.train.metrics import hardware
from lisan.train.metrics import mfu as gauge_of
from lisan.train.metrics.hardware import Measured, Peak, find_peak, look_up, measure_again, read_memory
from lisan.train.metrics.meter import measure_work
from lisan.train.metrics.mfu import Mfu, make_mfu
from lisan.train.metrics.run_header import count_weights
from lisan.train.metrics.run_log import read_run_log
from lisan.train.options import RuntimeConfig

FLOPS = ModelFlops(2, 4, 6, 4, 8, 12)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None),
        ("NVIDIA GeForce RTX 2080", None),
        ("", None),
    ],
)
def test_a_gpu_is_known_by_its_name(name: str, tflops: float | None) -> None:
    assert look_up(name) == tflops


def test_a_cpu_is_measured_once_and_says_how() -> None:
    peak = find_peak("cpu", torch.float32)
    assert 1e-4 < peak.tflops < 100
    assert peak.said.startswith(f"{peak.tflops:.3g} TFLOP/s fp32 measured by a ")
    assert find_peak("cpu", torch.float32) == peak


def test_a_peak_of_a_busy_machine_says_so_and_rises_when_it_is_measured_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = ("cpu", torch.float32, torch.get_num_threads())
    monkeypatch.setitem(hardware._fastest, key, Measured(1e-9, 64, had_ratio=0.4))
    slow = find_peak("cpu", torch.float32)
    assert "of a busy machine, which left it 40% of their time" in slow.said
    mfu = Mfu(FLOPS, slow, again=lambda: measure_again("cpu", torch.float32))
    mfu.measure_again()
    assert mfu.peak.tflops > 1e-4
    assert "left it 40%" not in mfu.peak.said
    monkeypatch.setitem(hardware._fastest, key, Measured(1e9, 64, had_ratio=1.0))
    assert measure_again("cpu", torch.float32).tflops == 1e9  # the best stays


def test_measuring_again_takes_a_hundredth_of_the_time_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = 0.0, []

    def measure() -> Peak:
        nonlocal now
        asked.append(now)
        now += 2
        return Peak(1.0, "1")

    monkeypatch.setattr(gauge_of.time, "perf_counter", lambda: now)
    mfu = Mfu(FLOPS, Peak(1.0, "1"), again=measure)
    for _ in range(1000):
        mfu.measure_again()
        now += 1
    assert asked == [0, 202, 404, 606, 808]


def test_an_mfu_above_the_whole_is_not_told(
    tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = train_config(tiny_store, loop={"num_steps": 3, "log_every": 1}, runtime=RuntimeConfig(peak_tflops=1e-9))
    run = train_alone(tiny_store, config, tmp_path)
    assert "train/tokens_per_second" in run.steps[1]
    assert not any("train/mfu_ratio" in step for step in run.steps.values())
    said = capsys.readouterr().out
    assert said.count("no MFU: the steps are faster than its peak (1e-09 TFLOP/s fp32") == 1


def test_a_higher_peak_is_told_on_the_line_and_on_the_page(
    tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauge_of, "find_peak", lambda *_: Peak(1e-9, "a slow peak", is_measured=True))
    monkeypatch.setattr(gauge_of, "measure_again", lambda *_: Peak(5.0, "a fast peak", is_measured=True))
    run = train_alone(tiny_store, train_config(tiny_store, loop={"num_steps": 2, "log_every": 1}), tmp_path)
    assert capsys.readouterr().out.count("MFU of a fast peak: measured again, 1e-09 before") == 1
    assert 0 < run.steps[1]["train/mfu_ratio"] < 0.1
    assert read_run_log(Location(str(tmp_path / "checkpoints")))[0]["facts"]["MFU of"] == "a fast peak"


def test_a_peak_that_is_given_is_taken() -> None:
    assert find_peak("cpu", torch.bfloat16, 1.5) == Peak(1.5, "1.5 TFLOP/s bf16, as runtime.peak_tflops says")
    with pytest.raises(ConfigError, match=r"runtime\.peak_tflops must be > 0, 0 for no MFU or null .* got -1"):
        RuntimeConfig(peak_tflops=-1)


def test_mfu_is_model_flops_over_the_peak_of_all_workers() -> None:
    mfu = Mfu(FLOPS, Peak(2.0, "2 TFLOP/s bf16"), extra_forwards=1)
    work = Work(num_tokens=10, num_pairs=100, num_labels=5)
    assert mfu.flops_of(work) == 4 * (20 + 400 + 30)
    assert mfu.ratio(8e12, seconds=4.0, world_size=2) == pytest.approx(0.5)
    assert mfu.said(1) == "MFU of 2 TFLOP/s bf16"
    assert mfu.said(2) == "MFU of 2 TFLOP/s bf16, each of 2 workers"


def test_padding_is_no_work_and_documents_are_apart() -> None:
    empty = np.zeros((2, 8), np.int32)
    rows = RowBatch(np.arange(2), empty, empty, ((3, 4), (5,)))
    assert measure_work(rows, 6) == Work(num_tokens=12, num_pairs=9 + 16 + 25, num_labels=6)


def test_a_model_that_cannot_be_counted_has_no_mfu_and_says_so(
    scorer: Scorer, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProcessGroup(Worker()):
        assert make_mfu(scorer, Worker(precision=Precision.float32), 0) is None
        assert make_mfu(scorer, Worker(precision=Precision.float32), 3.0) is not None
        scorer.model.get_decoder().experts = torch.nn.Parameter(torch.zeros(4, 8, 8))
        assert make_mfu(scorer, Worker(precision=Precision.float32), 3.0) is None
    assert capsys.readouterr().out.count("no MFU: the model multiplies with weights outside of linear layers") == 1


def test_weights_in_4_bits_are_counted(scorer: Scorer) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install -e '.[qlora]'")
    num_weights, num_trained = count_weights(scorer)
    assert num_weights == num_trained == sum(weight.numel() for weight in scorer.parameters())
    quantise_blocks(scorer.model)
    assert count_weights(scorer)[0] == num_weights
    assert count_weights(scorer)[1] < num_trained


def test_memory_is_that_of_the_process() -> None:
    before, _ = read_memory("cpu")
    block = torch.ones(30_000_000)
    now, most = read_memory("cpu")
    assert now - before > 0.9 * block.numel() * 4
    assert most >= now
