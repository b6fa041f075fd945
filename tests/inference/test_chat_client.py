"""The client of OpenAI-compatible endpoints, against a server in this process."""

import asyncio
import threading
from typing import Any

import pytest
from endpoint_server import Reply, completion, failure, serve

from lisan.core.errors import ConfigError, ServingError
from lisan.inference.chat_client import ChatClient, ChatReply, RefusedError, find_model_id
from lisan.inference.config import EndpointConfig, TrafficConfig
from lisan.records.records import Turn

TURNS = (Turn("system", "be brief"), Turn("user", "سلام؟"))
TRAFFIC = TrafficConfig(num_retries=3, timeout_s=30)
SOON = {"retry-after-ms": "5"}


def ask(url: str, traffic: TrafficConfig = TRAFFIC, times: int = 1, **settings: Any) -> list[list[ChatReply]]:
    async def run() -> list[list[ChatReply]]:
        client = ChatClient(EndpointConfig(url=url), "m", traffic)
        return await asyncio.gather(*(client.ask(TURNS, settings) for _ in range(times)))

    return asyncio.run(run())


def test_the_request_holds_turns_and_settings_and_the_replies_are_returned() -> None:
    with serve(lambda _: completion("one", "two", finish="length")) as served:
        assert ask(served.url, n=2, seed=7) == [[("one", True), ("two", True)]]
    [body] = served.requests
    assert body["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "سلام؟"}]
    assert (body["model"], body["n"], body["seed"]) == ("m", 2, 7)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_temporary_failures_are_retried(status: int) -> None:
    replies = iter([failure(status, **SOON), failure(status, **SOON), completion("at last")])
    with serve(lambda _: next(replies)) as served:
        assert ask(served.url) == [[("at last", False)]]
    assert len(served.requests) == 3


def test_an_endpoint_that_stays_busy_is_one_sentence() -> None:
    with serve(lambda _: failure(503, "full", **SOON)) as served, pytest.raises(ServingError) as caught:
        ask(served.url)
    assert len(served.requests) == 4
    assert "does not answer" in str(caught.value)
    assert "run the same command again: finished parts are kept" in str(caught.value)


def test_a_timeout_is_one_sentence() -> None:
    free = threading.Event()

    def wait(_: Any) -> Reply:
        free.wait(20)
        return completion("late")

    with serve(wait) as served:
        with pytest.raises(ServingError, match=r"does not answer in time; raise traffic\.timeout_s"):
            ask(served.url, TrafficConfig(num_retries=0, timeout_s=0.2))
        free.set()


@pytest.mark.parametrize(
    "body", [b"<html>", b"{", {"choices": []}, {"choices": None}, {"hello": 1}, [1], {"choices": [{"message": None}]}]
)
@pytest.mark.parametrize("kind", ["application/json", "text/html"])
def test_a_body_that_is_no_completion_is_one_sentence(body: Any, kind: str) -> None:
    said = r"something that is no chat completion .* OpenAI-compatible"
    with serve(lambda _: (200, body, {"Content-Type": kind})) as served, pytest.raises(ServingError, match=said):
        ask(served.url)


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        (400, RefusedError, "refused a request: .*too long"),
        (422, RefusedError, "refused a request: .*too long"),
        (401, ServingError, r"refused the key .*set endpoint\.key to the name"),
        (404, ServingError, r"no such address or model .*check endpoint\.url"),
    ],
)
def test_permanent_failures_are_not_retried(status: int, error: type[Exception], said: str) -> None:
    with serve(lambda _: failure(status, "too long")) as served, pytest.raises(error, match=said):
        ask(served.url)
    assert len(served.requests) == 1


def test_concurrent_requests_are_limited() -> None:
    gate = threading.Barrier(3, timeout=20)  # breaks when three at a time never come

    def meet(_: Any) -> Reply:
        gate.wait()
        return completion("x")

    with serve(meet) as served:
        assert len(ask(served.url, TrafficConfig(concurrency=3), times=9)) == 9
    assert served.max_running == 3


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    with serve(lambda _: completion("x")) as served:
        config = EndpointConfig(url=served.url, key="MY_KEY")

        async def run() -> None:
            await ChatClient(config, "m", TRAFFIC).ask(TURNS, {})

        asyncio.run(run())
    assert served.headers[0]["authorization"] == "Bearer secret"
    assert "secret" not in repr(config)
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ConfigError, match="environment variable MY_KEY must be set"):
        find_model_id(config, TRAFFIC)


def test_the_only_model_is_found_and_another_is_listed() -> None:
    with serve(lambda _: completion("x")) as served:
        assert find_model_id(EndpointConfig(url=served.url), TRAFFIC) == "m"
        with pytest.raises(ServingError, match=r"endpoint\.model=other is not served by .*, which serves m; name one"):
            find_model_id(EndpointConfig(url=served.url, model="other"), TRAFFIC)
    said = r"endpoint\.model=null is not served .* serves a, b"
    with serve(lambda _: completion("x"), models=("a", "b")) as served, pytest.raises(ServingError, match=said):
        find_model_id(EndpointConfig(url=served.url), TRAFFIC)


def test_an_address_without_a_server_is_one_sentence() -> None:
    with serve(lambda _: completion("x")) as served:
        pass
    with pytest.raises(ServingError, match=r"does not answer .*start it") as caught:
        find_model_id(EndpointConfig(url=served.url), TRAFFIC)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": "m"}, r"endpoint\.model=m has no effect without endpoint\.url"),
        ({"key": "K"}, r"endpoint\.key=K has no effect"),
        ({"url": "localhost:8000"}, "must begin with http"),
    ],
)
def test_an_invalid_endpoint_config_is_refused(values: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        EndpointConfig(**values)
    with pytest.raises(ConfigError, match="concurrency >= 1"):
        TrafficConfig(concurrency=0)
