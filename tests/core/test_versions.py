import pytest

from lisan.core.versions import code_commit, library_versions


def test_the_commit_is_that_of_the_checkout_or_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISAN_COMMIT", "abc123")
    assert code_commit() == "abc123"
    monkeypatch.delenv("LISAN_COMMIT")
    monkeypatch.setenv("PATH", "")
    assert code_commit() == "unknown"


def test_versions_list_installed_libraries() -> None:
    assert {"python", "torch", "pyarrow"} <= set(library_versions())
