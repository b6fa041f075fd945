"""Ctrl-C and SIGTERM: a request that work ends where it can go on later.

Outside of an `Interruption` both raise KeyboardInterrupt at once; inside of one, the first sets a flag that the work looks at.
"""

import os
import signal
import threading
from types import TracebackType

from lisan.core.progress import say
from lisan.core.torchrun import is_first

GRACE_S = 30.0
"How long work may go on after it was asked to end, until its checkpoint is written."
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def is_main_thread() -> bool:
    """Whether signals can be received here at all."""
    return threading.current_thread() is threading.main_thread()


class Interruption:
    """Tells by being called whether work was asked to end; a second signal ends the process at once.

    Raises KeyboardInterrupt in the block when `grace_s` have passed since the request, and after it when the block ended by
    itself. Outside of the main thread it never receives a request.
    """

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self.grace_s = grace_s
        self._is_asked = False
        self._before: dict[int, object] = {}
        self._timer: threading.Timer | None = None

    def __call__(self) -> bool:
        return self._is_asked

    def __enter__(self) -> "Interruption":
        if is_main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._is_asked and kind is None:
            raise KeyboardInterrupt

    def _ask(self, *_: object) -> None:
        self._is_asked = True
        # torchrun hands on the signal that the terminal has sent to all of us, and kills its workers after 30 s itself.
        is_alone = "TORCHELASTIC_RUN_ID" not in os.environ
        again = signal.SIG_DFL if is_alone else signal.SIG_IGN
        for other in SIGNALS:
            signal.signal(other, again)
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, raise_interrupt)
        # A signal and no flag, for the main thread may wait for a lock.
        wake = threading.main_thread().ident
        assert wake is not None  # it runs
        self._timer = threading.Timer(self.grace_s, signal.pthread_kill, (wake, signal.SIGALRM))
        self._timer.daemon = True
        self._timer.start()
        if is_first():
            more = "; once more ends at once" if is_alone else ""
            say(f"  ending after a checkpoint, in {self.grace_s:.0f} s at most{more}")
