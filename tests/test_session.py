"""What fails in a worker of Ray, as users read it; no Ray is started here."""

import pickle
from typing import Any

import pytest

from lisan.core.errors import ClusterError, DataError
from lisan.session import answer, in_one_sentence, reason_of


def ask(function: Any, item: Any = 1) -> Any:
    return pickle.loads(answer({"item": pickle.dumps(item)}, function)["result"])


def test_a_result_travels_as_it_is() -> None:
    assert ask(lambda item: (item, 2)) == (1, 2)


def test_what_users_can_cause_travels_in_its_own_words() -> None:
    def fail(_: int) -> None:
        raise DataError("the data are bad")

    failure = ask(fail)
    assert (type(failure), str(failure)) == (DataError, "the data are bad")


@pytest.mark.parametrize(
    ("message", "said"), [("out of memory\nTried", "RuntimeError: out of memory"), ("", "RuntimeError: no message")]
)
def test_anything_else_travels_as_one_sentence_with_its_trace_beside_it(message: str, said: str) -> None:
    def fail(_: int) -> None:
        raise RuntimeError(message)

    failure = ask(fail)
    assert (type(failure), str(failure)) == (ClusterError, said)
    assert "Traceback" in failure.__notes__[0]


def test_a_failure_of_ray_is_one_sentence_and_ours_stays() -> None:
    with pytest.raises(ClusterError, match=r"^OSError: the last line$"), in_one_sentence():
        raise OSError("a trace\n\nthe last line\n")
    with pytest.raises(DataError, match=r"^ours$"), in_one_sentence():
        raise DataError("ours")


def test_our_sentence_is_found_in_what_ray_wraps_around_it() -> None:
    inner, outer = RuntimeError("Ray's"), RuntimeError("Ray Train's")
    inner.__cause__ = DataError("ours")
    outer.worker_failures = {0: inner}  # type: ignore[attr-defined]
    assert reason_of(outer) == "ours"
