"""Named random streams."""

import subprocess
import sys

from lisan.core.seed import derive_seed, stream


def test_a_stream_is_the_same_in_every_process() -> None:
    code = "from lisan.core.seed import derive_seed; print(derive_seed(7, 'block', 3))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": salt, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    }
    assert outputs == {f"{derive_seed(7, 'block', 3)}\n"}


def test_the_value_of_a_seed_never_changes() -> None:
    """Another value would move every row order and every sample of what was made before."""
    assert (derive_seed(0), derive_seed(0, "a"), derive_seed(7, "block", 3)) == (
        4761921975702974394,
        1481238324449861677,
        6551159819765096316,
    )


def test_seeds_and_labels_give_streams_of_their_own() -> None:
    seeds = {derive_seed(seed, label, index) for seed in range(10) for label in "abc" for index in range(100)}
    assert len(seeds) == 3000


def test_labels_do_not_run_together() -> None:
    assert derive_seed(0, "ab", "c") != derive_seed(0, "a", "bc")
    assert derive_seed(1, 2) != derive_seed(12)


def test_a_seed_fits_63_bits() -> None:
    assert all(0 <= derive_seed(0, index) < 2**63 for index in range(100))


def test_a_stream_repeats_itself() -> None:
    assert [stream(3, "x").random() for _ in range(2)] == [stream(3, "x").random()] * 2
    assert stream(3, "x").random() != stream(3, "y").random()
