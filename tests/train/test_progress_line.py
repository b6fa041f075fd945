"""What a run says: the live line on a terminal, and only there; numbers for people."""

import doctest
import io
import os
import pty
import re
import select

import pytest

from lisan.train.metrics import progress_line
from lisan.train.metrics.progress_line import ProgressLine, format_bytes, format_count, format_seconds


def test_the_worked_examples() -> None:
    assert doctest.testmod(progress_line) == (0, 3)


@pytest.mark.parametrize(
    ("value", "said"), [(0, "0"), (999, "999"), (999.99, "1.0k"), (1e6, "1.0M"), (999_960, "1.0M"), (3e13, "30.0T")]
)
def test_counts_are_said_shortly(value: float, said: str) -> None:
    assert format_count(value) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (59.6, "1 m"), (3600, "1 h"), (3661, "1 h 1 m"), (90_000, "1 d 1 h")]
)
def test_durations_are_said_in_two_units(seconds: float, said: str) -> None:
    assert format_seconds(seconds) == said


def test_sizes_have_units() -> None:
    assert [format_bytes(size) for size in (12, 3.1e3, 141e9)] == ["12 B", "3.1 kB", "141.0 GB"]


def test_a_log_gets_lines_and_no_bar() -> None:
    out = io.StringIO()
    spoken = ProgressLine(out)
    assert not spoken.is_live
    spoken.show(1, 10, "loss 2.0")
    spoken.say("  step 1/10 loss 2.0")
    spoken.close()
    assert out.getvalue() == "  step 1/10 loss 2.0\n"


def test_a_terminal_gets_one_line_that_is_drawn_over_and_lines_that_stay_above_it() -> None:
    mine, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        spoken = ProgressLine(terminal)
        assert spoken.is_live
        spoken.say("  page: [somewhere]")
        for step in range(11):
            spoken.show(step, 10, f"loss {10 - step}.0")
            if step == 3:
                spoken.say("  skipped: [1, 2]")
        spoken.close()
        spoken.close()
        shown = ""
        while select.select([mine], [], [], 0.2)[0]:
            shown += os.read(mine, 1 << 16).decode()
    os.close(mine)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert "  page: [somewhere]" in plain
    assert "  skipped: [1, 2]" in plain
    assert re.search(r"step 10/10 .*loss 0\.0", plain)
    assert shown.count("\x1b[2K") >= 1, "the line is cleared before it is drawn again"
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is given back"
