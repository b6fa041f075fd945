"""The first signal is a request, the second ends the process; what comes too late or is never looked at is KeyboardInterrupt."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from lisan.core.interrupt import Interruption

CODE = """
import os, signal, time
from lisan.core.interrupt import Interruption
with Interruption():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_sets_a_flag_and_handlers_are_put_back(number: signal.Signals) -> None:
    before = handlers()
    with suppress(ZeroDivisionError), Interruption() as interruption:
        assert not interruption()
        os.kill(os.getpid(), number)
        assert interruption()
        raise ZeroDivisionError
    assert handlers() == before


def sleep_when_asked_to_end() -> None:
    with Interruption(grace_s=0.1):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)


def test_work_that_does_not_end_in_time_is_interrupted() -> None:
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        sleep_when_asked_to_end()
    assert time.monotonic() - begun < 10


def test_a_request_that_was_not_looked_at_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt), Interruption():
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_second_signal_ends_the_process_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGINT
