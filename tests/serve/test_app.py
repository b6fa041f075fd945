import importlib.util
import threading
from pathlib import Path
from types import ModuleType

import pytest

from lisan.core.errors import ConfigError
from lisan.inference.config import AutoscalingConfig, Dtype, EngineConfig, ServeConfig
from lisan.inference.endpoint import _answers
from lisan.serve.app import is_serve_proxy, read_arguments

ROOT = Path(__file__).parents[2]


@pytest.fixture
def chat_app() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chat", ROOT / "serve_apps" / "chat.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_arguments_of_serve_run_reach_typed_fields():
    config = read_arguments(
        {
            "alias": "candidate",
            "autoscaling.max_replicas": "4",
            "engine.dtype": "float32",
            "use_gpu": "false",
            "engine.max_model_len": "null",
            "engine.kv_cache_gb": "0.5",
        }
    )
    assert config == ServeConfig(
        alias="candidate",
        autoscaling=AutoscalingConfig(max_replicas=4),
        use_gpu=False,
        engine=EngineConfig(dtype=Dtype.float32, kv_cache_gb=0.5),
        storage=config.storage,
        tracking=config.tracking,
    )


def test_nested_arguments_of_a_deploy_file_mean_the_same_as_dotted_ones():
    nested = read_arguments({"autoscaling": {"max_replicas": 4, "min_replicas": 3}})
    assert nested == read_arguments({"autoscaling.max_replicas": "4", "autoscaling.min_replicas": "3"})


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"aliass": "champion"}, "aliass"),
        ({"autoscaling.max_replicas": "many"}, "max_replicas"),
        ({"engine.dtype": "int3"}, "dtype"),
        ({"autoscaling": "2", "autoscaling.max_replicas": "2"}, "autoscaling"),
        ({"route_prefix": "chat"}, "route_prefix"),
        ({"host": ""}, "host"),
        ({"port": "70000"}, "70000"),
        ({"max_queued_requests": "0"}, "max_queued_requests"),
        ({"engine.kv_cache_gb": "0"}, "kv_cache_gb"),
        ({"engine.gpu_memory_utilization": "1.5"}, "gpu_memory_utilization"),
        ({"engine.max_model_len": "0"}, "max_model_len"),
        ({"autoscaling.min_replicas": "3"}, "min_replicas"),
        ({"autoscaling.target_ongoing_requests": "0"}, "target_ongoing_requests"),
    ],
)
def test_a_bad_argument_is_one_sentence_that_names_its_key(arguments, key):
    with pytest.raises(ConfigError) as caught:
        read_arguments(arguments)
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_silent_listener_is_not_taken_for_ray_serve(taken_port):
    assert not is_serve_proxy(ServeConfig(port=taken_port))


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH_9.6\r\n"], ids=["nothing", "something else"])
def test_a_listener_that_hangs_up_or_is_no_http_server_does_not_answer(taken_listener, said):
    def hang_up():
        while True:
            connection, _ = taken_listener.accept()
            connection.recv(1024)
            connection.sendall(said)
            connection.close()

    threading.Thread(target=hang_up, daemon=True).start()
    port = taken_listener.getsockname()[1]
    assert not _answers(f"http://127.0.0.1:{port}/v1/models")
    assert not is_serve_proxy(ServeConfig(port=port))


def test_serve_run_of_an_alias_that_does_not_exist_exits_with_one_sentence(chat_app, tmp_path, monkeypatch):
    monkeypatch.setattr(chat_app, "is_serve_proxy", lambda _: True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(SystemExit) as caught:
        chat_app.build({"alias": "nobody", "storage.root": str(tmp_path)})
    assert str(caught.value.code).startswith("ServingError: no registered model is named 'lisan'")


def test_serve_run_on_a_port_in_use_exits_with_one_sentence(chat_app, taken_port, model_folder):
    with pytest.raises(SystemExit) as caught:
        chat_app.build({"path": str(model_folder), "port": str(taken_port)})
    assert str(caught.value.code).startswith(f"ServingError: port {taken_port} on 127.0.0.1 cannot be used")


def test_serve_run_listens_where_its_arguments_say(chat_app, model_folder, monkeypatch):
    """Serve starts after `build`, at its default address, unless it runs already."""
    asked = []
    monkeypatch.setattr(chat_app, "check_port", lambda _: None)
    monkeypatch.setattr(chat_app, "listen", asked.append)
    chat_app.build({"path": str(model_folder), "use_gpu": "false"})
    chat_app.build({"path": str(model_folder), "use_gpu": "false", "port": "8123", "host": "0.0.0.0"})
    assert [(config.host, config.port) for config in asked] == [("0.0.0.0", 8123)]


def test_an_address_in_the_arguments_of_a_deploy_file_is_refused(chat_app, model_folder, monkeypatch):
    monkeypatch.setattr(chat_app.ray, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match=r"port has no effect .* set http_options\.port of the deploy file"):
        chat_app.build({"path": str(model_folder), "port": 8123})
