"""A process names its work after every silence, and only then."""

import time

import pytest

from lisan.core.progress import Reporter


def test_work_is_named_after_every_silence(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(silence_s=0.05, first_silence_s=0.01)
    with reporter.doing("reading"):
        time.sleep(0.2)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "  reading, 0 s so far"
    assert 2 <= len(said) <= 5
    time.sleep(0.1)
    assert not capsys.readouterr().out, "the work is over"


def test_the_inner_activity_is_named_and_an_empty_name_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(silence_s=0.02, first_silence_s=0.02)
    with reporter.doing("outer"):
        with reporter.doing(lambda: "  step 3"):
            time.sleep(0.1)
        assert set(capsys.readouterr().out.splitlines()) == {"  step 3"}
        with reporter.doing(""):
            time.sleep(0.1)
        assert not capsys.readouterr().out


def test_a_printed_line_restarts_the_pause(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(silence_s=0.2, first_silence_s=0.2)
    with reporter.doing("reading"):
        for number in range(5):
            time.sleep(0.08)
            reporter.say(f"  part {number}")
    assert capsys.readouterr().out.splitlines() == [f"  part {number}" for number in range(5)]
