"""Counts and times requests by route, for Prometheus."""

import time
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BOUNDS = (0.005, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Upper bounds of the duration histogram, seconds."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Methods counted under their own name; anything else that a client invents counts as OTHER."""

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nobody needs


class Metrics:
    """The metrics of one explorer. Safe to share between threads."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "crossdiff_requests",
            "Answers by method, route and status.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "crossdiff_request_seconds",
            "Time until the answer was complete.",
            ["route"],
            buckets=BOUNDS,
            registry=self._registry,
        )
        self._runs = Gauge("crossdiff_runs", "Runs by status.", ["status"], registry=self._registry)
        self._open_results = Gauge("crossdiff_open_results", "Results files held open.", registry=self._registry)

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        self._requests.labels(method if method in METHODS else "OTHER", route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self, *, runs: Mapping[str, int], open_results: int) -> bytes:
        """Everything counted, runs by status and open results files, in Prometheus' text format."""
        self._runs.clear()
        for status, count in runs.items():
            self._runs.labels(status).set(count)
        self._open_results.set(open_results)
        return generate_latest(self._registry)


class CountRequests:
    """Counts every answer by the template of its route, so that the number of series stays small.

    Each answer also tells how long it took in the `Server-Timing` header, in milliseconds, which browsers show.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and count its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, began = 500, time.perf_counter()

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                milliseconds = 1000 * (time.perf_counter() - began)
                timing = (b"server-timing", f"app;dur={milliseconds:.2f}".encode())
                message = {**message, "headers": [*message.get("headers", []), timing]}
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.count(scope["method"], route, status, time.perf_counter() - began)
