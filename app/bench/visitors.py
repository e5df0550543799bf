"""Simulated visitors that request random pages of an explorer."""

import asyncio
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import urlencode

import httpx

from app.errors import ReaderError

Kind = Literal["feature_page", "list", "search"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MIX = (0.65, 0.25, 0.10)
"""Share of each kind in the requests under load."""
SORTS = ("-score", "-max_activation", "density", "-documents")
OWNERS = ("first", "second", "shared")
TIMEOUT = 60.0
"""Timeout of a request, in seconds."""
DURATION = re.compile(r"\bapp;dur=([0-9.]+)")


class NotAnswered(ReaderError):
    """The explorer did not answer a request with the page."""


@dataclass(frozen=True)
class Visit:
    """One answered request."""

    kind: Kind
    server_ms: float
    """Server time by the Server-Timing header."""
    client_ms: float
    """Time until the client had read the answer."""


@dataclass(frozen=True)
class Paths:
    """Random paths of pages of one run, drawn from `rng`."""

    run: str
    features: int
    words: Sequence[str]
    """Words of the text, most frequent first."""
    rng: random.Random

    def random_path(self) -> tuple[Kind, str]:
        """A kind by its share in MIX, and a path of it."""
        (kind,) = self.rng.choices(KINDS, MIX)
        return kind, self.path(kind)

    def path(self, kind: Kind) -> str:
        """A feature as opened from a list, a list with three filters and a sort, or a search."""
        if kind == "feature_page":
            feature = self.rng.randrange(self.features)
            return f"/runs/{self.run}/features/{feature}?{urlencode({'sort': self.rng.choice(SORTS)})}"
        if kind == "list":
            filters = {
                "owner": self.rng.choice(OWNERS),
                "life": "alive",
                "activation_min": f"{self.rng.uniform(1, 10):.1f}",
            }
            query = {**filters, "sort": self.rng.choice(SORTS), "page": self.rng.randint(1, 3)}
        else:
            # Not the most frequent words, which nobody searches for.
            query = {"q": self.words[self.rng.randrange(50, len(self.words) // 4)]}
        return f"/runs/{self.run}/features?{urlencode(query)}"


async def visit_one_by_one(address: str, paths: Paths, kind: Kind, count: int) -> list[Visit]:
    """Visits of a single visitor to pages of one kind, one after the other."""
    async with httpx.AsyncClient(base_url=address, timeout=TIMEOUT, trust_env=False) as client:
        return [await _visit(client, kind, paths.path(kind)) for _ in range(count)]


async def visit_together(address: str, paths: Paths, *, visitors: int, rate: float, seconds: float) -> list[Visit]:
    """Visits of concurrent visitors at `rate` requests per second, evenly spaced; late requests are sent at once."""
    async with httpx.AsyncClient(base_url=address, timeout=TIMEOUT, trust_env=False) as client:
        began, interval = time.perf_counter(), visitors / rate

        async def visit_repeatedly(visitor: int) -> list[Visit]:
            visits, due = [], began + visitor * interval / visitors
            while due < began + seconds and time.perf_counter() < began + seconds:
                await asyncio.sleep(max(due - time.perf_counter(), 0))
                visits.append(await _visit(client, *paths.random_path()))
                due += interval
            return visits

        return [visit for visits in await asyncio.gather(*map(visit_repeatedly, range(visitors))) for visit in visits]


async def _visit(client: httpx.AsyncClient, kind: Kind, path: str) -> Visit:
    """Requests one page. Raises NotAnswered for an error or an answer without Server-Timing."""
    began = time.perf_counter()
    try:
        answer = await client.get(path)
    except httpx.HTTPError as error:
        raise NotAnswered(f"{path} was not answered ({type(error).__name__}).", remedy="Lower --rate.") from error
    client_ms = 1000 * (time.perf_counter() - began)
    duration = DURATION.search(answer.headers.get("server-timing", ""))
    if answer.status_code != 200 or duration is None:
        fact = f"{path} was answered with {answer.status_code}."
        raise NotAnswered(fact, remedy="Fix the page first; a broken one cannot be measured.")
    return Visit(kind, float(duration[1]), client_ms)
