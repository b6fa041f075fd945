"""Sends entries in order from a background thread, so that a training loop never waits for the tracking server."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from lisan.core.errors import first_line

Entry = TypeVar("Entry")

PAUSE_S = 0.2
"Pause between two sends; entries that arrive in it are sent together."
RETRY_S = 15.0
CAPACITY = 100_000
"Entries kept while sending fails; the oldest are dropped first."


class BackgroundSender(Generic[Entry]):
    """Passes entries to `send` in lists; the thread starts with the first entry.

    `put` neither blocks nor raises. A list that `send` fails on is kept and sent again, so an entry may be sent twice.
    """

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
                self._thread = threading.Thread(target=self._work, name="background-sender", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is sent; False after `timeout_s`, or when a send failed."""
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
        logging.getLogger(__name__).warning(
            "the tracking store does not record for now: %s. The work continues; retrying every %.0f s",
            first_line(error)[:300],
            RETRY_S,
        )
