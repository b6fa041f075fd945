import pytest

from lisan.core.errors import DataError, first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n  too large\nat 3"), "too large"),
        (ValueError(), "ValueError"),
        (DataError(" \n"), "DataError"),
    ],
)
def test_the_first_line_of_an_error_is_never_empty(error: Exception, line: str) -> None:
    assert first_line(error) == line
