"""Reasons of failed engine starts, from real output of vLLM 0.29 and Ray Serve 2.60."""

import subprocess
import sys
from pathlib import Path

import pytest

from lisan.inference.engine_errors import explain, find_reason, last_reason

DIED = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}")
HELD = """(EngineCore pid=30315) ERROR 12-01 00:04:48 [core.py:1374] EngineCore failed to start.
(EngineCore pid=30315) ERROR 12-01 00:04:48 [core.py:1374] Traceback (most recent call last):
(EngineCore pid=30315) ERROR 12-01 00:04:48 [core.py:1374]     raise ValueError(
(EngineCore pid=30315) ERROR 12-01 00:04:48 [core.py:1374] ValueError: {}
(EngineCore pid=30315) Process EngineCore:
(EngineCore pid=30315) Traceback (most recent call last):
(EngineCore pid=30315)     raise e
(EngineCore pid=30315) ValueError: {}
"""
NO_CACHE = (
    "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine. "
    "See https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more details."
)
NO_ROOM = "Available memory on node 0 (11.88/15.59 GiB) on kv cache allocation is less than requested memory for kv (4000.0 GiB)"
UNKNOWN = RuntimeError(
    "Failed to create vLLM engine config: 1 validation error for ModelConfig\n"
    "  Value error, Model architectures ['FooForCausalLM'] are not supported for now. Supported architectures: dict_keys(["
    "'AfmoeForCausalLM', 'ApertusForCausalLM']) [type=value_error, input_value=ArgsKwargs(()), input_type=ArgsKwargs]\n"
    "    For further information visit https://errors.pydantic.dev/2.14/v/value_error"
)


@pytest.mark.parametrize(
    ("error", "held", "reason", "remedy"),
    [
        (
            DIED,
            HELD.format(NO_CACHE, NO_CACHE),
            "ValueError: No available memory for the cache blocks; ",
            "kv_cache_gb",
        ),
        (DIED, HELD.format(NO_ROOM, NO_ROOM), f"ValueError: {NO_ROOM}; ", "lower engine.kv_cache_gb"),
        (UNKNOWN, "", "Model architectures ['FooForCausalLM'] are not supported for now; ", "serve a model"),
        (
            ValueError("The model type 'gemma3' does not support float16. Reason: Numerical instability."),
            "",
            "ValueError: The model type 'gemma3' does not support float16; ",
            "choose another engine.dtype",
        ),
        (
            RuntimeError(
                "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': -9}"
            ),
            "",
            "its process was killed by SIGKILL (the system killed it, as it does when memory runs out); ",
            "lower engine.kv_cache_gb",
        ),
        (DIED, "", "RuntimeError: Engine core initialization failed; ", "check the model"),
    ],
    ids=["cache", "memory", "architecture", "dtype", "killed", "nothing said"],
)
def test_a_failed_start_is_one_sentence_with_its_reason_and_a_remedy(
    error: Exception, held: str, reason: str, remedy: str
) -> None:
    said = str(explain(error, held))
    assert said.startswith(reason)
    assert remedy in said
    assert "\n" not in said


def test_the_full_output_is_in_a_file_that_the_sentence_names() -> None:
    held = HELD.format(NO_CACHE, NO_CACHE)
    said = str(explain(DIED, held))
    log = Path(said.partition("(log of the engine: ")[2].rstrip(")"))
    assert held in log.read_text()


def test_an_error_of_the_replica_itself_is_its_own_reason() -> None:
    assert find_reason(KeyError("rope"), "ValueError: a warning of before") == "KeyError: 'rope'"


def test_the_reason_of_a_failed_start_is_the_innermost_error_of_its_trace() -> None:
    trace = (
        "Failed to start replica: Traceback (most recent call last):\n  File x, line 1\nValueError: outer\n"
        "RuntimeError: 1 validation error\n  Value error, no kernel for this head size.\n"
    )
    assert last_reason(trace) == "RuntimeError: 1 validation error no kernel for this head size"
    ours = "Traceback (most recent call last):\n  File x\nlisan.core.errors.ServingError: the cache is too small; raise it\n"
    assert last_reason(ours) == "the cache is too small; raise it"


def test_a_message_without_error_gives_its_last_line() -> None:
    assert last_reason("Waiting for resources\n1 replica pending.\n") == "1 replica pending"


def test_stderr_is_buffered_until_its_release_and_then_passed_on() -> None:
    code = r"""
import os, subprocess, sys, time
from lisan.inference.engine_errors import StderrBuffer
held = StderrBuffer()
say = "import sys; print('early', file=sys.stderr, flush=True); input(); print('late', file=sys.stderr)"
child = subprocess.Popen([sys.executable, "-c", say], stdin=subprocess.PIPE)
while not held._lines:
    time.sleep(0.01)
os.write(2, b"without end of line")
text = held.release()
child.communicate(b"\n")
os.write(2, b"own\n")
time.sleep(0.2)
print(text)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["early", "without", "end", "of", "line"]
    assert sorted(done.stderr.split()) == ["late", "own"]
