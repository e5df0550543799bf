"""Visitors: people who look at an explorer all at once, each asking for page after page."""

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
"""Share of each kind among what visitors ask for."""
SORTS = ("-score", "-max_activation", "density", "-documents")
OWNERS = ("first", "second", "shared")
TIMEOUT = 60.0
"""Seconds after which a visitor gives up."""
DURATION = re.compile(r"\bapp;dur=([0-9.]+)")


class NotAnswered(ReaderError):
    """The explorer gave something else than the page asked for."""


@dataclass(frozen=True)
class Visit:
    """One page, asked for and answered."""

    kind: Kind
    server_ms: float
    """Until the answer was complete on the server, as it says itself."""
    client_ms: float
    """Until it was read."""


@dataclass(frozen=True)
class Paths:
    """What can be asked of one run; every choice is drawn from `chance`."""

    run: str
    features: int
    words: Sequence[str]
    """Words of the text, commonest first."""
    chance: random.Random

    def any(self) -> tuple[Kind, str]:
        """A kind by its share in the mix, and a path."""
        (kind,) = self.chance.choices(KINDS, MIX)
        return kind, self.path(kind)

    def path(self, kind: Kind) -> str:
        """A path of a kind: any feature, as if opened from a list; a list with three filters and a sort; a search."""
        if kind == "feature_page":
            feature = self.chance.randrange(self.features)
            return f"/runs/{self.run}/features/{feature}?{urlencode({'sort': self.chance.choice(SORTS)})}"
        if kind == "list":
            filters = {
                "owner": self.chance.choice(OWNERS),
                "life": "alive",
                "activation_min": f"{self.chance.uniform(1, 10):.1f}",
            }
            query = {**filters, "sort": self.chance.choice(SORTS), "page": self.chance.randint(1, 3)}
        else:
            # Not the very commonest, which everybody would skip over.
            query = {"q": self.words[self.chance.randrange(50, len(self.words) // 4)]}
        return f"/runs/{self.run}/features?{urlencode(query)}"


async def one_by_one(address: str, paths: Paths, kind: Kind, count: int) -> list[Visit]:
    """A single visitor who asks for pages of one kind, each after the one before."""
    async with httpx.AsyncClient(base_url=address, timeout=TIMEOUT, trust_env=False) as client:
        return [await _visit(client, kind, paths.path(kind)) for _ in range(count)]


async def together(address: str, paths: Paths, *, visitors: int, rate: float, seconds: float) -> list[Visit]:
    """Visitors who together ask for `rate` pages a second, evenly apart; one whose turn comes late asks at once."""
    async with httpx.AsyncClient(base_url=address, timeout=TIMEOUT, trust_env=False) as client:
        began, apart = time.perf_counter(), visitors / rate

        async def stay(place: int) -> list[Visit]:
            seen, turn = [], began + place * apart / visitors
            while turn < began + seconds and time.perf_counter() < began + seconds:
                await asyncio.sleep(max(turn - time.perf_counter(), 0))
                seen.append(await _visit(client, *paths.any()))
                turn += apart
            return seen

        return [visit for seen in await asyncio.gather(*map(stay, range(visitors))) for visit in seen]


async def _visit(client: httpx.AsyncClient, kind: Kind, path: str) -> Visit:
    """Ask for one page. Raises NotAnswered unless it is answered as it should be."""
    began = time.perf_counter()
    try:
        answer = await client.get(path)
    except httpx.HTTPError as error:
        raise NotAnswered(f"{path} was not answered ({type(error).__name__}).", remedy="Lower --rate.") from error
    client_ms = 1000 * (time.perf_counter() - began)
    duration = DURATION.search(answer.headers.get("server-timing", ""))
    if answer.status_code != 200 or duration is None:
        fact = f"{path} was answered with {answer.status_code}."
        raise NotAnswered(fact, remedy="Mend the page first; a broken one is no measurement.")
    return Visit(kind, float(duration[1]), client_ms)
