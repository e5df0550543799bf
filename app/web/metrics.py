"""Metrics: requests counted and timed by route, in the text format that Prometheus reads."""

import threading
import time
from collections import Counter, defaultdict

from starlette.types import ASGIApp, Message, Receive, Scope, Send

BOUNDS = (0.005, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Upper bounds of the duration histogram, seconds."""


class Metrics:
    """Counts of what was answered. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: Counter[tuple[str, str, int]] = Counter()
        self._within: Counter[tuple[str, float]] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        with self._lock:
            self._answers[method, route, status] += 1
            self._seconds[route] += seconds
            for bound in BOUNDS:
                if seconds <= bound:
                    self._within[route, bound] += 1

    def text(self, gauges: dict[str, dict[str, float]]) -> str:
        """Everything counted, and gauges given as {name: {labels: value}}."""
        with self._lock:
            answers, within, seconds = Counter(self._answers), Counter(self._within), dict(self._seconds)
        lines = [
            "# HELP crossdiff_requests_total Answers by method, route and status.",
            "# TYPE crossdiff_requests_total counter",
        ]
        for (method, route, status), count in sorted(answers.items()):
            labels = f'method="{method}",route="{route}",status="{status}"'
            lines.append(f"crossdiff_requests_total{{{labels}}} {count}")
        name = "crossdiff_request_seconds"
        lines += [f"# HELP {name} Time until the answer was complete.", f"# TYPE {name} histogram"]
        totals = Counter[str]()
        for (_, route, _), count in answers.items():
            totals[route] += count
        for route, total in sorted(totals.items()):
            lines += [f'{name}_bucket{{route="{route}",le="{bound:g}"}} {within[route, bound]}' for bound in BOUNDS]
            lines += [
                f'{name}_bucket{{route="{route}",le="+Inf"}} {total}',
                f'{name}_sum{{route="{route}"}} {seconds[route]:.6f}',
                f'{name}_count{{route="{route}"}} {total}',
            ]
        for gauge, values in gauges.items():
            lines.append(f"# TYPE {gauge} gauge")
            lines += [f"{gauge}{f'{{{labels}}}' if labels else ''} {value:g}" for labels, value in values.items()]
        return "\n".join(lines) + "\n"


class CountRequests:
    """Counts every answer by the template of its route, so that the number of series stays small.

    Each answer says how long it took, in the header that browsers show beside it: `Server-Timing`, milliseconds.
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
