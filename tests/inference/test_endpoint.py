"""Addresses and deployment options of an endpoint."""

import pytest

from lisan.core.errors import ServingError
from lisan.inference.config import AutoscalingConfig, EngineConfig, ServeConfig
from lisan.inference.endpoint import _answers, check_port, deployment_options, find_free_port, start


def test_a_port_in_use_is_refused_before_anything_starts(taken_port, model_folder):
    import ray

    before = ray.is_initialized()
    with pytest.raises(ServingError, match=f"port {taken_port} "):
        start(ServeConfig(path=str(model_folder), port=taken_port))
    assert ray.is_initialized() == before


def test_a_free_port_passes_and_an_address_of_another_machine_does_not():
    free = find_free_port()
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
def test_an_endpoint_on_every_interface_has_a_local_address(host, address):
    assert ServeConfig(host=host).address == address


def test_a_listener_that_takes_too_long_does_not_answer(taken_port, monkeypatch):
    monkeypatch.setattr("lisan.inference.endpoint.ANSWER_TIMEOUT_S", 0.05)
    assert not _answers(f"http://127.0.0.1:{taken_port}/v1/models")


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
