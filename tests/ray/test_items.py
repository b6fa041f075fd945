"""Items through Ray Data: a process that dies again and again ends the job, in one sentence."""

import os
from typing import Any

import pytest

from lisan.core.errors import ClusterError

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120), pytest.mark.usefixtures("local_ray")]
NUM_CPUS = 2


@pytest.mark.parametrize("kind", ["tasks", "actors"])
def test_items_are_answered_and_a_process_that_keeps_dying_is_one_sentence(kind: str) -> None:
    import ray

    from lisan.cluster.ray import answer, map_on_ray

    def double(item: int) -> int:
        if item == 3:
            os._exit(1)
        return 2 * item

    class Doubling:
        def __call__(self, row: Any) -> Any:
            return answer(row, double)

    actors = {"compute": ray.data.ActorPoolStrategy(size=1), "max_restarts": 1, "max_task_retries": 1}
    tasks = {"fn_kwargs": {"function": double}, "max_retries": 1}
    call, options = (answer, tasks) if kind == "tasks" else (Doubling, actors)
    assert sorted(map_on_ray(call, [1, 2], num_cpus=0.5, **options)) == [2, 4]
    with pytest.raises(ClusterError, match="died") as caught:
        list(map_on_ray(call, [3], num_cpus=0.5, **options))
    assert "\n" not in str(caught.value)
    assert list(map_on_ray(call, [])) == []
