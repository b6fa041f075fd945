"""An outbox: hand something over in microseconds, have it sent in order by one background thread.

In: entries of any kind and a function that sends a list of them. Always: `put` neither blocks nor raises, order is
kept, what could not be sent is kept and tried again, so an entry may be sent twice. `registry` uses it so that no
training loop waits for the tracking server.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Entry = TypeVar("Entry")

PAUSE_S = 0.2
"Time between two sends: metrics that arrive meanwhile travel together."
RETRY_S = 15.0
CAPACITY = 100_000
"Entries kept while the receiver is away; beyond it the oldest go."


class Outbox(Generic[Entry]):
    """Entries on their way to `send`; the thread starts with the first one."""

    def __init__(self, send: Callable[[list[Entry]], None]) -> None:
        self._send = send
        self._changed = threading.Condition()
        self._waiting: list[Entry] = []
        self._sending = False
        self._hurried = False
        self._failed = False
        self._thread: threading.Thread | None = None

    def put(self, entry: Entry) -> None:
        with self._changed:
            self._waiting.append(entry)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is sent; False when it is not by then, or when the last send failed again."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._hurried, self._failed = True, False
            self._changed.notify_all()
            done = self._changed.wait_for(
                lambda: self._failed or not (self._waiting or self._sending), max(0.0, deadline - time.monotonic())
            )
            self._hurried = False
            return done and not self._failed

    def _work(self) -> None:
        warned = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                batch, self._waiting, self._sending = self._waiting, [], True
            error = self._try(batch)
            if error is not None and not warned:
                self._warn(error)
                warned = True
            with self._changed:
                self._sending, self._failed = False, error is not None
                if error is not None:
                    self._waiting = (batch + self._waiting)[-CAPACITY:]
                self._changed.notify_all()
                rest_s = PAUSE_S if error is None else RETRY_S
                self._changed.wait_for(lambda: self._hurried and bool(self._waiting), rest_s)

    def _try(self, batch: list[Entry]) -> Exception | None:
        try:
            self._send(batch)
        except Exception as error:
            return error
        return None

    def _warn(self, error: Exception) -> None:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        logging.getLogger(__name__).warning(
            "not recorded for now: %s. The work goes on, and it is tried again every %.0f s", reason, RETRY_S
        )
