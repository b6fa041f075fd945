"""Maps a function over items, in this process or on Ray as `cluster.num_workers` says.

Does not import Ray for work in this process. Results of Ray come in any order. Errors that a user can cause keep their type and
message; any other error of a worker is a ClusterError.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Protocol, TypeVar

from lisan.core.stage import ClusterConfig

Item_contra = TypeVar("Item_contra", contravariant=True)
Item = TypeVar("Item")
Result_co = TypeVar("Result_co", covariant=True)


class Closable(Protocol[Item_contra, Result_co]):
    """A function with state, such as a loaded model, that is closed after the last item."""

    def __call__(self, item: Item_contra, /) -> Result_co: ...
    def close(self) -> None: ...


def map_items(
    function: Callable[[Item], Result_co], items: Sequence[Item], cluster: ClusterConfig
) -> Generator[Result_co]:
    """Yield the result of each item: from this process, or from `num_workers` Ray tasks at a time."""
    if not cluster.num_workers:
        yield from map(function, items)
        return
    from lisan.cluster.ray import connect, map_in_tasks

    connect(cluster)
    yield from map_in_tasks(function, items, cluster)


def map_with_state(
    make: Callable[[], Closable[Item, Result_co]], items: Sequence[Item], cluster: ClusterConfig
) -> Generator[Result_co]:
    """Yield the result of each item from functions that `make` returns: one in this process, or one per Ray actor.

    Each actor gets a GPU with `cluster.use_gpu`. Actors end with their process and are not closed.
    """
    if not cluster.num_workers:
        with closing(make()) as function:
            yield from map(function, items)
        return
    from lisan.cluster.ray import connect, map_in_actors

    connect(cluster)
    yield from map_in_actors(make, items, cluster)
