"""MFU and memory: of which peak, and how much of it."""

import numpy as np
import pytest
import torch

from lisan.core.errors import ConfigError
from lisan.core.stage import ClusterConfig
from lisan.model.config import Precision
from lisan.model.flops import ModelFlops, Work
from lisan.model.nf4 import quantise_blocks
from lisan.model.score import Scorer
from lisan.tokens.rows import Rows
from lisan.train.gauge import Gauge, make_gauge
from lisan.train.hardware import Peak, find_peak, look_up, measure_tflops, read_memory
from lisan.train.header import count_weights
from lisan.train.throughput import measure_work
from lisan.train.worker import ProcessGroup, Worker

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
    assert measure_tflops("cpu", torch.float32, torch.get_num_threads())[0] == peak.tflops


def test_a_peak_that_is_given_is_taken() -> None:
    assert find_peak("cpu", torch.bfloat16, 1.5) == Peak(1.5, "1.5 TFLOP/s bf16, as cluster.peak_tflops says")
    with pytest.raises(ConfigError, match=r"cluster\.peak_tflops must be > 0, 0 for no MFU or null .* got -1"):
        ClusterConfig(peak_tflops=-1)


def test_mfu_is_model_flops_over_the_peak_of_all_workers() -> None:
    gauge = Gauge(FLOPS, Peak(2.0, "2 TFLOP/s bf16"), extra_forwards=1)
    work = Work(num_tokens=10, num_pairs=100, num_labels=5)
    assert gauge.flops_of(work) == 4 * (20 + 400 + 30)
    assert gauge.mfu(8e12, seconds=4.0, world_size=2) == pytest.approx(0.5)
    assert gauge.said(1) == "MFU of 2 TFLOP/s bf16"
    assert gauge.said(2) == "MFU of 2 TFLOP/s bf16, each of 2 workers"


def test_padding_is_no_work_and_documents_are_apart() -> None:
    empty = np.zeros((2, 8), np.int32)
    rows = Rows(np.arange(2), empty, empty, ((3, 4), (5,)))
    assert measure_work(rows, 6) == Work(num_tokens=12, num_pairs=9 + 16 + 25, num_labels=6)


def test_a_model_that_cannot_be_counted_has_no_mfu_and_says_so(
    scorer: Scorer, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProcessGroup(Worker()):
        assert make_gauge(scorer, Worker(precision=Precision.float32), 0) is None
        assert make_gauge(scorer, Worker(precision=Precision.float32), 3.0) is not None
        scorer.model.get_decoder().experts = torch.nn.Parameter(torch.zeros(4, 8, 8))
        assert make_gauge(scorer, Worker(precision=Precision.float32), 3.0) is None
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
