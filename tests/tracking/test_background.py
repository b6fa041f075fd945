import time

import pytest

from lisan.tracking import background
from lisan.tracking.background import BackgroundSender


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(background, "PAUSE_S", 0.01)
    monkeypatch.setattr(background, "RETRY_S", 0.05)


class Receiver:
    """Takes entries, or raises as often as it is told to."""

    def __init__(self, failures=0, seconds=0.0):
        self.entries, self.failures, self.seconds = [], failures, seconds

    def take(self, entries):
        time.sleep(self.seconds)
        if self.failures:
            self.failures -= 1
            raise ConnectionError("nobody there")
        self.entries += entries


def test_entries_arrive_in_order():
    receiver = Receiver()
    box = BackgroundSender(receiver.take)
    for number in range(1000):
        box.put(number)
    assert box.flush(5)
    assert receiver.entries == list(range(1000))


def test_put_does_not_wait_for_a_slow_receiver():
    box = BackgroundSender(Receiver(seconds=1.0).take)
    start = time.perf_counter()
    for number in range(100):
        box.put(number)
    assert time.perf_counter() - start < 0.2


def test_entries_are_sent_again_after_a_failure():
    receiver = Receiver(failures=2)
    box = BackgroundSender(receiver.take)
    box.put("first")
    time.sleep(0.03)
    box.put("second")
    deadline = time.monotonic() + 5
    while len(receiver.entries) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert receiver.entries == ["first", "second"]


def test_flush_says_that_the_receiver_is_away_without_waiting_for_the_timeout():
    box = BackgroundSender(Receiver(failures=10**6).take)
    box.put(1)
    start = time.perf_counter()
    assert not box.flush(20)
    assert time.perf_counter() - start < 2


def test_an_absent_receiver_is_warned_about_once(caplog):
    box = BackgroundSender(Receiver(failures=10**6).take)
    box.put(1)
    for _ in range(3):
        box.flush(1)
    assert len(caplog.records) == 1
    assert "nobody there" in caplog.text


def test_the_oldest_entries_go_when_the_receiver_stays_away(monkeypatch):
    monkeypatch.setattr(background, "CAPACITY", 10)
    receiver = Receiver(failures=3)
    box = BackgroundSender(receiver.take)
    for number in range(50):
        box.put(number)
    for _ in range(4):
        box.flush(1)
    assert receiver.entries == list(range(40, 50))


def test_flush_of_no_entries_returns_at_once():
    assert BackgroundSender(Receiver().take).flush(5)
