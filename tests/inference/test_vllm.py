"""Engine arguments and environment of vLLM."""

import json
import platform
from pathlib import Path

import pytest
import torch

from lisan.cluster.config import Precision
from lisan.cluster.precision import Resolved
from lisan.inference.config import Dtype, EngineConfig
from lisan.inference.vllm import choose_dtype, engine_arguments, engine_environment, multiplies_int8, warn_of_int8


def test_without_gpu_the_cache_is_sized_in_bytes_and_compilation_is_skipped():
    arguments = engine_arguments(EngineConfig(kv_cache_gb=0.5), use_gpu=False)
    assert arguments["kv_cache_memory_bytes"] == 2**29
    assert arguments["enable_chunked_prefill"] is False
    assert arguments["enforce_eager"] is True
    assert "gpu_memory_utilization" not in arguments
    assert "max_model_len" not in arguments


@pytest.mark.parametrize(
    ("native", "asked", "config", "chosen"),
    [
        (Precision.float32, Dtype.auto, {}, Dtype.float32),
        (Precision.bfloat16, Dtype.auto, {}, Dtype.auto),
        (Precision.float32, Dtype.bfloat16, {}, Dtype.bfloat16),
        (Precision.float32, Dtype.auto, {"quantization_config": {}}, Dtype.auto),
    ],
)
def test_a_cpu_without_bf16_instructions_computes_in_float32(native, asked, config, chosen, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("lisan.cluster.precision.find_precision", lambda _: Resolved(native, "as this test says"))
    assert choose_dtype(EngineConfig(dtype=asked), tmp_path, use_gpu=False) is chosen
    assert choose_dtype(EngineConfig(dtype=asked), tmp_path, use_gpu=True) is asked


@pytest.mark.parametrize("use_gpu", [False, True])
def test_no_web_page_may_ask_the_endpoint_from_a_browser(use_gpu):
    assert engine_arguments(EngineConfig(), use_gpu)["allowed_origins"] == []


def test_with_gpu_the_cache_takes_a_share_of_memory_and_graphs_are_captured():
    arguments = engine_arguments(EngineConfig(gpu_memory_utilization=0.8), use_gpu=True)
    assert arguments["gpu_memory_utilization"] == 0.8
    assert arguments["enforce_eager"] is False
    assert not {"kv_cache_memory_bytes", "enable_chunked_prefill"} & set(arguments)


def test_compute_threads_override_the_setting_of_ray(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert engine_environment(EngineConfig(threads=3), use_gpu=False)["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in engine_environment(EngineConfig(threads=3), use_gpu=True)


def test_a_log_level_of_the_environment_stays(monkeypatch):
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    assert engine_environment(EngineConfig(), use_gpu=False)["VLLM_LOGGING_LEVEL"] == "DEBUG"


@pytest.mark.parametrize(
    ("num_bits", "isa", "warns"), [(8, "AVX2", True), (4, "AVX2", False), (8, "", False), (None, "AVX2", False)]
)
def test_int8_weights_on_a_cpu_without_vnni_are_warned_of(
    num_bits: int | None, isa: str, warns: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True})
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    groups = {"config_groups": {"group_0": {"weights": {"num_bits": num_bits}}}}
    config = {"quantization_config": groups} if num_bits else {}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert multiplies_int8() is (isa != "AVX2")
    assert (warn_of_int8(tmp_path) is not None) is warns
