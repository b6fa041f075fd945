"""One process at a time builds an artifact: who lives is named, who died is followed."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from lisan.core import lease
from lisan.core.errors import ArtifactError
from lisan.core.lease import Lease, describe_self
from lisan.core.storage import Location

HOLD = "import sys, time; from lisan.core.lease import Lease; from lisan.core.storage import Location\n" + (
    "with Lease(Location(sys.argv[1]), 'model/x@v1'): print('held', flush=True); time.sleep(600)"
)


@pytest.fixture(params=["local", "s3"])
def file(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Location:
    for name, seconds in (("BEAT_S", 0.05), ("SILENCE_S", 0.5), ("SETTLE_S", 0.1)):
        monkeypatch.setattr(lease, name, seconds)
    root = str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")
    return Location(root) / "leases" / "v1.json"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def take(file: Location, said: list[str]) -> Callable[[], Lease]:
    return lambda: Lease(file, "model/x@v1", said.append)


def elsewhere(**changes: Any) -> dict[str, Any]:
    return {**describe_self(), "host": "far", "place": "far", "nonce": "theirs", **changes}


def test_a_second_builder_is_refused_while_the_first_lives(file: Location, take: Callable[[], Lease]) -> None:
    refusal = (
        rf"model/x@v1 is being built by .+ pid {describe_self()['pid']} since .* UTC; wait for it, or choose another"
    )
    with take():
        with pytest.raises(ArtifactError, match=refusal), take():
            pass
        assert file.exists()
    assert not file.exists()
    with take():
        pass


def test_of_many_that_begin_at_once_one_builds(
    file: Location, take: Callable[[], Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SETTLE_S", 0.0 if file.is_local else 1.5)
    outcomes: list[str] = []
    meeting, enough = threading.Barrier(8), threading.Event()

    def build() -> None:
        meeting.wait()
        try:
            with take():
                outcomes.append("built")
                enough.wait()
        except ArtifactError as error:
            outcomes.append(str(error))

    builders = [threading.Thread(target=build) for _ in range(8)]
    for builder in builders:
        builder.start()
    while len(outcomes) < 8:
        time.sleep(0.01)
    enough.set()
    for builder in builders:
        builder.join()
    assert outcomes.count("built") == 1
    assert all("is being built by" in outcome for outcome in outcomes if outcome != "built")


def test_a_killed_builder_of_this_machine_is_followed_at_once(tmp_path: Path, said: list[str]) -> None:
    file = Location(str(tmp_path / "lease.json"))
    with subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE, text=True) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "held\n"
        with pytest.raises(ArtifactError, match=f"pid {builder.pid} since"), Lease(file, "model/x@v1"):
            pass
        builder.kill()
        while psutil.Process(builder.pid).status() != psutil.STATUS_ZOMBIE:  # nobody has waited for it yet
            time.sleep(0.01)
        begun = time.monotonic()
        with Lease(file, "model/x@v1", said.append):
            assert time.monotonic() - begun < 2
    [line] = said
    assert line.endswith(", which is gone; this process takes it over")


def test_another_process_with_the_same_id_is_not_the_builder(file: Location, take: Callable[[], Lease]) -> None:
    file.write_json({**describe_self(), "started": describe_self()["started"] - 60, "nonce": "of an earlier start"})
    with take():
        pass


def test_a_builder_elsewhere_that_is_silent_is_followed(
    file: Location, take: Callable[[], Lease], said: list[str]
) -> None:
    file.write_json(elsewhere())
    with take():
        assert file.read_json()["nonce"] != "theirs"
    assert [line.split(";")[0].split(" since")[0] for line in said] == [
        f"model/x@v1 was started by far pid {describe_self()['pid']}"
    ] * 2


def test_a_builder_elsewhere_that_gives_a_sign_is_waited_for(file: Location, take: Callable[[], Lease]) -> None:
    file.write_json(elsewhere())
    sign = threading.Timer(0.2, lambda: file.write_json(elsewhere(beat=7)))
    sign.start()
    with pytest.raises(ArtifactError, match="is being built by far pid"), take():
        pass
    sign.join()


def test_the_file_changes_while_the_builder_lives(file: Location, take: Callable[[], Lease]) -> None:
    with take():
        before = file.read_json()["beat"]
        end = time.monotonic() + 10
        while file.read_json()["beat"] == before:
            assert time.monotonic() < end
            time.sleep(0.02)


def test_a_builder_that_was_taken_for_dead_stops(file: Location, take: Callable[[], Lease]) -> None:
    """As one whose machine slept."""

    def build() -> None:
        with take():
            for _ in range(50):  # a beat that has looked already writes over the first
                file.write_json(elsewhere())
                time.sleep(0.3)

    with pytest.raises(ArtifactError, match=r"model/x@v1 was taken over by far pid .* this process sent no heartbeat"):
        build()


def test_a_lease_that_is_cut_off_is_nobodys(file: Location, take: Callable[[], Lease]) -> None:
    file.write_bytes(b'{"host": "f')
    with take():
        pass
