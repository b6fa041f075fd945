"""The vLLM replica: one engine with vLLM's OpenAI app, behind the access list.

Neither Ray nor vLLM is imported before a replica is made, so that drivers stay light.
"""

import json
import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

from lisan.cluster.config import Precision
from lisan.core.integrity import fetch_folder
from lisan.inference.access import AllowedRoutes, AsgiApp
from lisan.inference.config import Dtype, EngineConfig
from lisan.inference.engine_errors import StderrBuffer, explain
from lisan.inference.plain_content import PlainContent
from lisan.inference.served_model import ServedModel, check_weights
from lisan.tokenizer.control_tokens import control_tokens_of
from lisan.tokenizer.tokenizer import load_tokenizer


def choose_dtype(engine: EngineConfig, folder: Path, use_gpu: bool) -> Dtype:
    """Return the dtype in which the engine computes on this machine.

    Measured with 97 M bf16 weights on two cores, tokens/s of 1 and of 8 users: limited to AVX2, 52 and 67 in bf16, 48 and 184 in
    fp32; with AVX512-BF16, 78 and 387 in bf16, 43 and 231 in fp32. Kernels for quantised weights take 16 bits only.
    """
    if engine.dtype is not Dtype.auto or use_gpu:
        return engine.dtype
    if "quantization_config" in json.loads((folder / "config.json").read_bytes()):
        return engine.dtype
    from lisan.cluster.precision import find_precision

    is_slow = find_precision("cpu").precision is Precision.float32
    return Dtype.float32 if is_slow else Dtype.auto


def warn_of_int8(folder: Path) -> str | None:
    """Return a warning when int8 weights are served on an x86 CPU without VNNI, else None.

    Without it oneDNN adds pairs of 8-bit products in 16 bits, which saturate: log-probabilities of a small model move by 0.18
    (mean), of 4-bit weights by 0.37.
    """
    config = json.loads((folder / "config.json").read_bytes()).get("quantization_config") or {}
    bits = {group["weights"]["num_bits"] for group in config.get("config_groups", {}).values() if group.get("weights")}
    if 8 not in bits or multiplies_int8():
        return None
    return (
        "int8 products saturate on this CPU, which has no VNNI instructions, and replies lose quality; serve the hf format of "
        "the model, or use a CPU with AVX-VNNI, AVX512-VNNI or AMX"
    )


def multiplies_int8() -> bool:
    """Return whether oneDNN multiplies int8 exactly on this CPU: every CPU but x86 without VNNI."""
    import torch

    able = torch.cpu.get_capabilities()
    is_limited = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in ("SSE41", "AVX", "AVX2", "AVX512_CORE")
    has_vnni = any(able.get(name) for name in ("avx_vnni", "avx512_vnni", "amx_int8"))
    return platform.machine() not in ("x86_64", "AMD64") or (has_vnni and not is_limited)


def engine_arguments(engine: EngineConfig, use_gpu: bool) -> dict[str, Any]:
    """Return vLLM's engine arguments; null fields keep vLLM's defaults."""
    memory: dict[str, Any] = {"gpu_memory_utilization": engine.gpu_memory_utilization}
    if not use_gpu:
        memory = {
            "kv_cache_memory_bytes": int(engine.kv_cache_gb * 2**30),
            # vLLM 0.29 crashes on a seeded request whose prompt spans two chunks: "CPU Generator does not use offset".
            "enable_chunked_prefill": False,
        }
    arguments = {
        "dtype": engine.dtype.value,
        "max_model_len": engine.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "enforce_eager": engine.enforce_eager if engine.enforce_eager is not None else not use_gpu,
        "use_tqdm_on_load": False,
        "allowed_origins": [],  # vLLM's default allows the scripts of any web page
        **memory,
    }
    return {key: value for key, value in arguments.items() if value is not None}


def engine_environment(engine: EngineConfig, use_gpu: bool) -> dict[str, str]:
    """Return the environment variables of a replica and its engine process; those already set keep their value."""
    environment = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # buffered while the engine starts
        "VLLM_NO_USAGE_STATS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    environment = {name: os.environ.get(name, value) for name, value in environment.items()}
    if not use_gpu:
        # Ray sets it to the CPUs of the actor, and vLLM would reserve one core for the HTTP server.
        environment["OMP_NUM_THREADS"] = str(engine.threads or len(os.sched_getaffinity(0)))
    return environment


class Replica:
    """A Serve deployment of one engine and its OpenAI app; its constructor returns when the engine can answer."""

    async def __init__(  # type: ignore[misc]  # Serve awaits constructors
        self, model: ServedModel, engine: EngineConfig, use_gpu: bool
    ) -> None:
        os.environ.update(engine_environment(engine, use_gpu))
        check_weights(fetch_folder(model.folder))
        stderr = StderrBuffer()
        try:
            self._server = _make_server(model, engine, use_gpu)
            await self._server.start()
        except Exception as error:
            raise explain(error, stderr.release()) from None
        stderr.release()
        self._controls = control_tokens_of(load_tokenizer(fetch_folder(model.folder)))

    async def __serve_build_asgi_app__(self) -> AsgiApp:
        app = await self._server.__serve_build_asgi_app__()
        return AllowedRoutes(PlainContent(app, self._controls))

    async def check_health(self) -> None:
        await self._server.check_health()


def _make_server(model: ServedModel, engine: EngineConfig, use_gpu: bool) -> Any:
    """Return Ray's LLM server of the model, not yet started."""
    from ray.serve.llm import LLMConfig

    folder = fetch_folder(model.folder)
    engine = replace(engine, dtype=choose_dtype(engine, folder, use_gpu))
    config = LLMConfig(
        model_loading_config={"model_id": model.name, "model_source": str(folder)},
        accelerator_config={"kind": "gpu" if use_gpu else "cpu"},
        engine_kwargs=engine_arguments(engine, use_gpu),
    )
    # The folder is on this machine already; Ray would start one more process that imports vLLM to download it.
    config.get_or_create_callback().ctx.run_init_node = False
    one_process = not use_gpu and engine.tensor_parallel_size == 1
    return _server_class().sync_init(config, engine_cls=_one_process_engine() if one_process else None)


def _server_class() -> type[Any]:
    """Return Ray's LLM server without its telemetry, which starts an actor and waits 3 s for it."""
    from ray.serve.llm.deployment import LLMServer

    class Server(LLMServer):
        async def _start_engine(self) -> None:
            await self.engine.start()

    return Server


def _one_process_engine() -> type[Any]:
    """Return Ray's vLLM engine with the model in the engine process instead of a child process (starts 7 s faster).

    Ray sets the `mp` executor in every CPU config, and vLLM requires it to bind threads to cores, which costs one of two
    cores; here OMP_NUM_THREADS limits the threads.
    """
    from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine

    class Engine(VLLMEngine):
        def _prepare_engine_config(self, callback_ctx: Any) -> Any:
            engine_args, frontend_args, engine_config = super()._prepare_engine_config(callback_ctx)
            engine_config.parallel_config.distributed_executor_backend = "uni"
            return engine_args, frontend_args, engine_config

    return Engine
