"""Finds the reason of a failed engine start in the output of vLLM and Ray Serve.

vLLM's engine process writes its trace to stderr and exits; the replica only gets "See root cause above". `StderrBuffer` keeps
that output while the engine starts, so that the reason becomes one sentence, and passes later output on.
"""

import os
import re
import signal
import tempfile
import threading
from collections import deque
from pathlib import Path

from lisan.core.errors import LisanError, ServingError

MAX_REASON = 500
MAX_LINES = 2000
RELEASE = b"\0\n"
RELEASE_TIMEOUT_S = 5.0
NAMED_ERROR = re.compile(r"[\w.]*(Error|Exception|Exit): ")
LOG_PREFIX = re.compile(r"^(\(\w+ pid=\d+\)\s?)?(ERROR [\d-]+ [\d:]+ \[[^\]]*\]\s?)?")
"Prefix of a line from vLLM: its process, and the level, time and code line of a log record."
DECORATION = re.compile(
    r"^lisan\.core\.errors\.\w+: |^RuntimeError: Failed to create vLLM engine config: |^ValidationError: "
    r"|\d+ validation errors? for \w+ |Value error, | \[type=\w+, input.*"
)
"Text that Ray's errors, our errors and pydantic put around their message."
SIGNALS = {
    signal.SIGKILL: "the system killed it, as it does when memory runs out",
    signal.SIGILL: "this processor lacks an instruction that the engine was built for",
}
MORE_CACHE = "raise engine.kv_cache_gb (engine.gpu_memory_utilization on a GPU) or lower engine.max_model_len"
LESS_MEMORY = (
    "lower engine.kv_cache_gb, engine.max_num_seqs or engine.max_model_len, or take a machine with more memory"
)
REMEDIES = (
    (r"out of memory|requested memory|SIGKILL|allocate", LESS_MEMORY),
    (r"cache blocks|KV cache", MORE_CACHE),
    (r"max_model_len", "lower engine.max_model_len, or leave it null"),
    (r"rchitecture", "serve a model whose architecture vLLM supports"),
    (r"dtype|float", "choose another engine.dtype"),
    (r"", "check the model and the engine settings"),
)
"Pattern of a reason and its remedy; the first match counts."


class StderrBuffer:
    """Buffers the stderr of this process and of its children until `release`."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque(maxlen=MAX_LINES)
        self._released = threading.Event()
        read, write = os.pipe()
        self._stderr = os.dup(2)
        os.dup2(write, 2)
        os.close(write)
        threading.Thread(target=self._copy, args=(read,), daemon=True).start()

    def _copy(self, read: int) -> None:
        with open(read, "rb") as pipe:
            for line in pipe:
                if line == RELEASE:
                    self._released.set()
                elif self._released.is_set():
                    os.write(self._stderr, line)
                else:
                    self._lines.append(line)

    def release(self) -> str:
        """Pass later output on; return the buffered output."""
        os.write(2, b"\n" + RELEASE)  # after everything written so far, even an unfinished line
        os.dup2(self._stderr, 2)
        self._released.wait(RELEASE_TIMEOUT_S)
        return b"".join(self._lines).decode(errors="replace")


def explain(error: BaseException, stderr: str) -> LisanError:
    """Make one sentence of an engine's start error and its stderr, and write both in full to a log file."""
    if isinstance(error, LisanError):
        return error
    log = Path(tempfile.gettempdir()) / f"lisan-engine-{os.getpid()}.log"
    log.write_text(f"{stderr}\n{error!r}\n", encoding="utf-8")
    reason = find_reason(error, stderr)
    remedy = next(remedy for pattern, remedy in REMEDIES if re.search(pattern, reason))
    return ServingError(f"{reason}; {remedy} (log of the engine: {log})")


def find_reason(error: BaseException, stderr: str) -> str:
    """Return why the engine ended: a signal, the last error in its stderr, or the error itself."""
    killed = re.search(r"Failed core proc\(s\): \{.*?: -(\d+)", str(error))
    if killed:
        number = signal.Signals(int(killed[1]))
        return f"its process was killed by {number.name}" + (f" ({SIGNALS[number]})" if number in SIGNALS else "")
    message = f"{type(error).__name__}: {error}"
    lines = [LOG_PREFIX.sub("", line) for line in stderr.splitlines()]
    if "root cause above" in message and any(map(NAMED_ERROR.match, lines)):
        message = "\n".join(lines)
    return re.split(r"\.? +(?=See https)|\. (?=[A-Z`])", last_reason(message))[0]


def last_reason(message: str) -> str:
    """Return the innermost error of a message with a stack trace: its text from the last line that names an error."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    named = [index for index, line in enumerate(lines) if NAMED_ERROR.match(line)]
    reason = " ".join(lines[named[-1] :] if named else lines[-1:])
    return DECORATION.sub("", reason)[:MAX_REASON].rstrip(". ")
