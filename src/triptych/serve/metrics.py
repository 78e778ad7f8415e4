"""What ``/metrics`` shows (Prometheus)."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """Counters of one server, in a registry of its own so that several servers can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "triptych_requests", "Requests by route and status", ("route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "triptych_request_seconds", "Seconds a request by route", ("route",), registry=self.registry
        )
        self.batch = Histogram(
            "triptych_batch_size",
            "Requests answered together",
            ("model",),
            buckets=(1, 2, 4, 8, 16),
            registry=self.registry,
        )
        self.waiting = Gauge("triptych_waiting", "Requests that wait for a model", ("model",), registry=self.registry)

    def observe_batch(self, model: str, size: int) -> None:
        self.batch.labels(model).observe(size)

    def text(self) -> bytes:
        return generate_latest(self.registry)
