"""Work mapped over the machines of a Ray cluster: the only door to ray. What the work writes lies on a disk of all."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from alexnet.errors import DataError

T = TypeVar("T")
R = TypeVar("R")


def on_ray(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """``work`` of every item, in the order in which they end, one core each; twice as many wait as there are cores.

    Uses the cluster that ``RAY_ADDRESS`` names or that this process is part of, else the cores of this machine. A task
    whose machine is lost is done again elsewhere. Raises what ``work`` raises, and DataError.
    """
    try:
        import ray
    except ImportError as error:
        raise DataError("engine ray: ray is not there", "installed", "pip install 'alexnet[cluster]'") from error
    own = not ray.is_initialized()
    try:
        if own:
            ray.init(log_to_driver=False)
        yield from _mapped(ray, work, items)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except (ray.exceptions.RayError, ConnectionError) as error:
        reason = " ".join(str(error).split())[:200]
        todo = "check the cluster (ray status) and run it again: finished shards are kept"
        raise DataError(f"engine ray: {reason}", "", todo) from error
    finally:
        if own:
            ray.shutdown()


def _mapped(ray: Any, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    task = ray.remote(num_cpus=1, max_retries=3)(work)
    rest = iter(items)
    pending = [task.remote(item) for item in islice(rest, 2 * int(ray.cluster_resources().get("CPU", 1)))]
    while pending:
        (ended, *_), pending = ray.wait(pending, num_returns=1)
        yield ray.get(ended)
        pending += [task.remote(item) for item in islice(rest, 1)]
