"""A lease on an artifact in the making, so that one process at a time builds it.

In: where the lease's file lies, below the root that all builders share. Out: a context in which nobody else builds. Always: a
holder on this machine counts as dead when its process is gone, one elsewhere when its file has not changed for a minute by this
machine's clock; what a dead one held is taken over in one line. On a local disk a lock makes look and write one act; on an object
store, which has none, the file is read again after two seconds, and the last writer has it.
"""

import fcntl
import os
import platform
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from lisan.core.errors import ArtifactError
from lisan.core.storage import Location

BEAT_S = 10.0
SILENCE_S = 60.0
"Without a beat a holder on another machine counts as dead."
SETTLE_S = 2.0
"After which two writers of an object see the same one."
SAME_START_S = 2.0
"Two readings of when a process started differ by less: the clock that they are computed from is adjusted."

Holder = Mapping[str, Any]


class Lease:
    """The right to build `what`; entering raises ArtifactError while another process that lives has it."""

    def __init__(self, file: Location, what: str, say: Callable[[str], None] = print) -> None:
        self.file, self.what, self.say = file, what, say
        self._own = describe_self()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._successor: Holder | None = None

    def __enter__(self) -> "Lease":
        held = self._read()
        if held is not None:
            if (living := self._find_living(held)) is not None:
                raise self._refused(living)
            self.say(f"{self.what} was begun by {_name(held)}, which is gone; this process takes it over")
        with _locked(self.file):
            now = self._read()
            if now is not None and now["nonce"] != (held or {}).get("nonce"):
                raise self._refused(now)
            self.file.write_json(self._own)
        if not self.file.is_local:
            time.sleep(SETTLE_S)
            if (now := self._read()) is not None and now["nonce"] != self._own["nonce"]:
                raise self._refused(now)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(BEAT_S)  # or it would write the file again
        if self._successor is not None:
            raise ArtifactError(
                f"{self.what} was taken over by {_name(self._successor)}, because this process gave no sign for "
                f"{SILENCE_S:.0f} s; wait for that one, or choose another name or version"
            ) from error
        with suppress(OSError):
            if (held := self._read()) is not None and held["nonce"] == self._own["nonce"]:
                self.file.delete()

    def _beat(self) -> None:
        """Change the file now and then; interrupt the work when another process has it."""
        for beat in range(1, 1 << 40):
            if self._ended.wait(BEAT_S):
                return
            with suppress(OSError):  # storage that is away for a moment
                held = self._read()
                if held is not None and held["nonce"] != self._own["nonce"]:
                    self._successor = held
                    # A signal to the main thread itself wakes it where it sleeps or waits.
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    return
                self.file.write_json({**self._own, "beat": beat})

    def _find_living(self, held: Holder) -> Holder | None:
        """Return who has the lease and lives."""
        if held["place"] == self._own["place"]:
            return held if is_running(held["pid"], held["started"]) else None
        self.say(f"{self.what} was begun by {_name(held)}; waiting up to {SILENCE_S:.0f} s for a sign of it")
        end = time.monotonic() + SILENCE_S
        while time.monotonic() < end:
            time.sleep(BEAT_S / 5)
            now = self._read()
            if now is None or (now["nonce"], now["beat"]) != (held["nonce"], held["beat"]):
                return now
        return None

    def _read(self) -> Holder | None:
        try:
            held: Holder = self.file.read_json()
            return held if self._own.keys() <= held.keys() else None
        except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError):
            return None

    def _refused(self, holder: Holder) -> ArtifactError:
        return ArtifactError(
            f"{self.what} is being built by {_name(holder)}; wait for it, or choose another name or version"
        )


def describe_self() -> dict[str, Any]:
    """Return what tells this process from every other, anywhere, at any time."""
    import psutil

    return {
        "host": platform.node(),
        "place": _describe_place(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "nonce": uuid.uuid4().hex,
        "beat": 0,
    }


@cache
def _describe_place() -> str:
    """Return what two processes share whose ids can be compared: a start of a machine, and a container on it."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    container = Path("/proc/self/ns/pid")
    parts = [boot.read_text().strip() if boot.exists() else ""]
    with suppress(OSError):
        parts.append(os.readlink(container))
    return " ".join([platform.node(), *parts])


def is_running(pid: int, started: float) -> bool:
    """Tell whether the process with that id lives and is the one that started then."""
    import psutil

    try:
        process = psutil.Process(pid)
        is_same = abs(process.create_time() - started) < SAME_START_S
        return bool(is_same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def _locked(file: Location) -> Iterator[None]:
    """Keep the other processes of a local disk from the same block, where its file system has locks."""
    if not file.is_local:
        yield
        return
    folder = Path(file.full_path).parent
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _name(holder: Holder) -> str:
    return f"{holder['host']} pid {holder['pid']} since {holder['since']}"
