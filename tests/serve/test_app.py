import importlib.util
import json
import socket
import threading
from pathlib import Path
from types import ModuleType

import pytest

from lisan.cluster.config import Precision
from lisan.cluster.precision import Resolved
from lisan.core.errors import ArtifactError, ConfigError, ServingError
from lisan.core.stage import StorageConfig
from lisan.core.storage import Location
from lisan.inference.config import AutoscalingConfig, Dtype, EngineConfig, ServeConfig
from lisan.inference.endpoint import _answers, check_port, deployment_options, start
from lisan.inference.served_model import check_model_folder, find_served_model
from lisan.inference.vllm import choose_dtype, engine_arguments, engine_environment
from lisan.serve.app import is_serve_proxy, read_arguments

ROOT = Path(__file__).parents[2]


def write_model_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    return write_model_folder(tmp_path / "model")


@pytest.fixture
def taken_listener():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


@pytest.fixture
def taken_port(taken_listener):
    return taken_listener.getsockname()[1]


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


def test_a_model_folder_is_found_under_the_name_that_clients_use(model_folder):
    found = find_served_model(ServeConfig(model="atlas", path=str(model_folder)))
    assert (found.name, str(found.folder)) == ("atlas", str(model_folder))


def test_a_relative_path_is_made_absolute_because_replicas_run_in_other_folders(model_folder, monkeypatch):
    monkeypatch.chdir(model_folder.parent)
    assert str(find_served_model(ServeConfig(path="model")).folder) == str(model_folder)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_part_of_a_model_is_refused_naming_it(model_folder, missing):
    (model_folder / missing).unlink()
    with pytest.raises(ServingError, match=missing.removeprefix("model")):
        check_model_folder(Location(str(model_folder)), "it")


@pytest.mark.parametrize("content", ["not json", "[]", "{}"])
def test_a_config_that_names_no_architecture_is_refused(model_folder, content):
    (model_folder / "config.json").write_text(content)
    with pytest.raises(ServingError, match=r"config\.json"):
        check_model_folder(Location(str(model_folder)), "it")


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ServingError, match="is not a model folder"):
        find_served_model(ServeConfig(path=str(tmp_path / "nothing")))


def test_a_reference_to_a_missing_artifact_names_what_exists(tmp_path):
    with pytest.raises(ArtifactError, match="model/x@v1 does not exist"):
        find_served_model(ServeConfig(path="model/x@v1", storage=StorageConfig(root=str(tmp_path))))


def test_an_adapter_is_refused_because_only_merged_models_are_served(tmp_path):
    with pytest.raises(ConfigError, match="expected a model"):
        find_served_model(ServeConfig(path="adapter/x@v1", storage=StorageConfig(root=str(tmp_path))))


def test_a_port_in_use_is_refused_before_anything_starts(taken_port, model_folder):
    import ray

    before = ray.is_initialized()
    with pytest.raises(ServingError, match=f"port {taken_port} "):
        start(ServeConfig(path=str(model_folder), port=taken_port))
    assert ray.is_initialized() == before


def test_a_free_port_passes_and_an_address_of_another_machine_does_not():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    check_port(ServeConfig(port=free))
    check_port(ServeConfig(port=free, host="0.0.0.0"))
    with pytest.raises(ServingError, match=f"port {free} on 192.0.2.1 cannot be used"):
        check_port(ServeConfig(port=free, host="192.0.2.1"))


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("gpu7", "http://gpu7:8000"),
    ],
)
def test_what_listens_everywhere_is_asked_on_this_machine(host, address):
    assert ServeConfig(host=host).address == address


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


def test_a_listener_that_takes_too_long_does_not_answer(taken_port, monkeypatch):
    monkeypatch.setattr("lisan.inference.endpoint.ANSWER_TIMEOUT_S", 0.05)
    assert not _answers(f"http://127.0.0.1:{taken_port}/v1/models")


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


def test_a_replica_without_gpu_holds_its_cpus_and_nothing_else():
    options = deployment_options(ServeConfig(cpus_per_replica=2.0), use_gpu=False)
    assert options["placement_group_bundles"] == [{"CPU": 2.0}]
    assert options["ray_actor_options"] == {"num_cpus": 2.0}


def test_a_tensor_parallel_replica_holds_all_its_gpus_on_one_node():
    options = deployment_options(ServeConfig(engine=EngineConfig(tensor_parallel_size=2)), use_gpu=True)
    assert options["placement_group_bundles"] == [{"CPU": 1.0, "GPU": 1.0}, {"GPU": 1.0}]
    assert options["placement_group_strategy"] == "STRICT_PACK"


def test_serve_accepts_the_deployment_options_and_keeps_their_values():
    from ray import serve

    scaling = AutoscalingConfig(min_replicas=2, max_replicas=5, target_ongoing_requests=7)
    config = ServeConfig(autoscaling=scaling, max_queued_requests=9)
    deployment = serve.deployment(lambda: None, **deployment_options(config, use_gpu=False))
    accepted = deployment._deployment_config
    assert (accepted.autoscaling_config.min_replicas, accepted.autoscaling_config.max_replicas) == (2, 5)
    assert accepted.autoscaling_config.target_ongoing_requests == 7
    assert accepted.max_queued_requests == 9


def test_without_gpu_the_cache_is_sized_in_bytes_and_compilation_is_skipped():
    arguments = engine_arguments(EngineConfig(kv_cache_gb=0.5), use_gpu=False)
    assert arguments["kv_cache_memory_bytes"] == 2**29
    assert arguments["enable_chunked_prefill"] is False
    assert arguments["enforce_eager"] is True
    assert "gpu_memory_utilization" not in arguments
    assert "max_model_len" not in arguments


@pytest.mark.parametrize(
    ("native", "asked", "config", "chosen"),
    [
        (Precision.float32, Dtype.auto, {}, Dtype.float32),
        (Precision.bfloat16, Dtype.auto, {}, Dtype.auto),
        (Precision.float32, Dtype.bfloat16, {}, Dtype.bfloat16),
        (Precision.float32, Dtype.auto, {"quantization_config": {}}, Dtype.auto),
    ],
)
def test_a_cpu_without_bf16_instructions_computes_in_float32(native, asked, config, chosen, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("lisan.cluster.precision.find_precision", lambda _: Resolved(native, "as this test says"))
    assert choose_dtype(EngineConfig(dtype=asked), tmp_path, use_gpu=False) is chosen
    assert choose_dtype(EngineConfig(dtype=asked), tmp_path, use_gpu=True) is asked


@pytest.mark.parametrize("use_gpu", [False, True])
def test_no_web_page_may_ask_the_endpoint_from_a_browser(use_gpu):
    assert engine_arguments(EngineConfig(), use_gpu)["allowed_origins"] == []


def test_with_gpu_the_cache_is_what_memory_is_left_and_graphs_are_captured():
    arguments = engine_arguments(EngineConfig(gpu_memory_utilization=0.8), use_gpu=True)
    assert arguments["gpu_memory_utilization"] == 0.8
    assert arguments["enforce_eager"] is False
    assert not {"kv_cache_memory_bytes", "enable_chunked_prefill"} & set(arguments)


def test_compute_threads_override_what_ray_has_set_for_the_actor(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert engine_environment(EngineConfig(threads=3), use_gpu=False)["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in engine_environment(EngineConfig(threads=3), use_gpu=True)


def test_a_log_level_that_somebody_has_set_stays(monkeypatch):
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    assert engine_environment(EngineConfig(), use_gpu=False)["VLLM_LOGGING_LEVEL"] == "DEBUG"
