"""The metrics at ``/metrics`` (Prometheus)."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Metrics:
    """The counters of one server, in their own registry, so that several servers can run in one process."""

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
        self.remembered = Counter(
            "triptych_remembered_answers", "Answers that were given again", ("model",), registry=self.registry
        )
        self.waiting = Gauge("triptych_waiting", "Requests that wait for a model", ("model",), registry=self.registry)

    def observe_batch(self, model: str, size: int) -> None:
        self.batch.labels(model).observe(size)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class RequestMetrics:
    """The ASGI layer that counts and times requests by route."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def send_and_record(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_record)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - started)
