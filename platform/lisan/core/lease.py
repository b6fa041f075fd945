"""Lease on an artifact, so that one process at a time builds it.

A holder on this machine counts as dead when its process is gone, one on another machine when its file has not changed for
a minute by this machine's clock; the lease of a dead holder is taken over. On a local disk a lock makes read and write
atomic; an object store has no lock, so the file is read again after two seconds and the last writer wins.
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
"Time without a heartbeat after which a holder on another machine counts as dead."
SETTLE_S = 2.0
"Time after which two writers of an object read the same contents."
SAME_START_S = 2.0
"Two readings of the start time of one process differ by less; they depend on an adjusted clock."

Holder = Mapping[str, Any]


class Lease:
    """The right to build `what`; entering raises ArtifactError while a living process holds it."""

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
            self.say(f"{self.what} was started by {_name(held)}, which is gone; this process takes it over")
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
        self._thread.join(BEAT_S)  # otherwise it would write the file again
        if self._successor is not None:
            raise ArtifactError(
                f"{self.what} was taken over by {_name(self._successor)}, because this process sent no heartbeat for "
                f"{SILENCE_S:.0f} s; wait for that one, or choose another name or version"
            ) from error
        with suppress(OSError):
            if (held := self._read()) is not None and held["nonce"] == self._own["nonce"]:
                self.file.delete()

    def _beat(self) -> None:
        """Write a heartbeat every BEAT_S; interrupt the work when another process holds the lease."""
        for beat in range(1, 1 << 40):
            if self._ended.wait(BEAT_S):
                return
            with suppress(OSError):  # storage that does not answer for a moment
                held = self._read()
                if held is not None and held["nonce"] != self._own["nonce"]:
                    self._successor = held
                    # A signal to the main thread wakes it from a sleep or a wait.
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    return
                self.file.write_json({**self._own, "beat": beat})

    def _find_living(self, held: Holder) -> Holder | None:
        """Return the holder if it is alive, else None."""
        if held["place"] == self._own["place"]:
            return held if is_running(held["pid"], held["started"]) else None
        self.say(f"{self.what} was started by {_name(held)}; waiting up to {SILENCE_S:.0f} s for its heartbeat")
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
    """Return a description of this process that no other has, on any machine at any time."""
    import psutil

    return {
        "host": platform.node(),
        "place": _describe_machine(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "nonce": uuid.uuid4().hex,
        "beat": 0,
    }


@cache
def _describe_machine() -> str:
    """Return the boot id and container of this machine: process ids are comparable where both are equal."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    container = Path("/proc/self/ns/pid")
    parts = [boot.read_text().strip() if boot.exists() else ""]
    with suppress(OSError):
        parts.append(os.readlink(container))
    return " ".join([platform.node(), *parts])


def is_running(pid: int, started: float) -> bool:
    """Tell whether a process with that id and start time is alive."""
    import psutil

    try:
        process = psutil.Process(pid)
        is_same = abs(process.create_time() - started) < SAME_START_S
        return bool(is_same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def _locked(file: Location) -> Iterator[None]:
    """Hold a lock on the folder of a local file, where its file system has locks."""
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
