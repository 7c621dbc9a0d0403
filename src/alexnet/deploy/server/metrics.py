"""What Prometheus may ask for at ``/metrics``. With several processes, sums over all of them."""

from collections.abc import Callable
from typing import Any

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters and histograms of one process.

    ``shared``: several processes count together, in the folder that the environment's PROMETHEUS_MULTIPROC_DIR names;
    it must be set before prometheus_client is imported, which reads it then.
    """

    def __init__(self, shared: bool = False) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        from prometheus_client.platform_collector import PlatformCollector
        from prometheus_client.process_collector import ProcessCollector

        self.shared, self.registry = shared, CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("alexnet_requests", "Requests answered.", ["route", "status"], **own)
        self.seconds = Histogram("alexnet_request_seconds", "From head to answer.", ["route"], buckets=_SECONDS, **own)
        self.pictures = Counter("alexnet_pictures", "Pictures by what became of them.", ["outcome"], **own)
        self.batches = Histogram("alexnet_batch_pictures", "Pictures a batch.", buckets=_SIZES, **own)
        self.network_seconds = Histogram("alexnet_network_seconds", "One batch's time.", buckets=_SECONDS, **own)
        self.reloads = Counter("alexnet_reloads", "New bundles, taken or refused.", ["outcome"], **own)
        self.waiting = Gauge("alexnet_waiting", "Pictures accepted, not answered.", multiprocess_mode="livesum", **own)
        self.ready = Gauge("alexnet_ready", "Processes that answer.", multiprocess_mode="livesum", **own)
        for outcome in ("answered", "refused", "lost"):
            self.pictures.labels(outcome)  # 0 is an answer too
        if not shared:  # of this process: memory, file handles, processor time
            ProcessCollector(registry=self.registry)
            PlatformCollector(registry=self.registry)

    def text(self) -> tuple[bytes, str]:
        """The page for Prometheus, and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

        registry = self.registry
        if self.shared:
            from prometheus_client.multiprocess import MultiProcessCollector

            registry = CollectorRegistry()
            collect: Callable[[Any], Any] = MultiProcessCollector
            collect(registry)
        return generate_latest(registry), CONTENT_TYPE_LATEST
