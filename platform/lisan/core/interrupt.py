"""Ctrl-C and SIGTERM as a request to end at a point from which the work can resume.

Outside of an `Interruption` both raise KeyboardInterrupt at once; inside, the first sets a flag that the work polls.
"""

import os
import signal
import threading
from types import TracebackType

from lisan.core.progress import say
from lisan.core.torchrun import is_first

GRACE_S = 30.0
"Time that work has after a request to end, to write a checkpoint."
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def is_main_thread() -> bool:
    """Tell whether this thread can receive signals."""
    return threading.current_thread() is threading.main_thread()


class Interruption:
    """Callable that tells whether the work was asked to end; a second signal ends the process at once.

    Raises KeyboardInterrupt in the block `grace_s` after the request, or after the block when it ended by itself. Outside of
    the main thread it never receives a request.
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
        # torchrun forwards the signal that the terminal sent to all processes, and kills its workers after 30 s itself.
        is_alone = "TORCHELASTIC_RUN_ID" not in os.environ
        again = signal.SIG_DFL if is_alone else signal.SIG_IGN
        for other in SIGNALS:
            signal.signal(other, again)
        self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, raise_interrupt)
        # A signal instead of a flag, because the main thread may wait for a lock.
        wake = threading.main_thread().ident
        assert wake is not None
        self._timer = threading.Timer(self.grace_s, signal.pthread_kill, (wake, signal.SIGALRM))
        self._timer.daemon = True
        self._timer.start()
        if is_first():
            more = "; once more ends at once" if is_alone else ""
            say(f"  ending after a checkpoint, in {self.grace_s:.0f} s at most{more}")
