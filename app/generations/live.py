"""Broadcast: generations under way, what they have said so far, and everybody who follows them.

A generation runs as a task of the web process, whoever looks at it: following, reloading or a second viewer never
starts anything, and nobody has to stay for it to end.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

from app.errors import ReaderError
from app.inference.client import Client, WorkerBusy
from app.inference.messages import Answer, GenerationRequest, LaneState

log = logging.getLogger("crossdiff.broadcast")

MOST = 9
"""Generations under way at once, with those that wait for the worker."""
KEEP_EVERY = 2.0
"""Seconds between two savings of a generation under way."""
ENDED = ("done", "stopped", "failed")


@dataclass(frozen=True)
class LaneSoFar:
    """What one lane has said."""

    source: str
    strength: float
    state: LaneState = "waiting"
    reason: str = ""
    """How it ended: `end`, `length`, or a sentence when it failed."""
    writes: bool | None = None
    """Whether the feature writes to this source; None until the worker says."""
    prompt: str = ""
    """What the model read; empty until the worker says."""
    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    """Time spent sampling."""
    changed: int = 0
    """The version in which this lane last changed."""


@dataclass(frozen=True)
class GenerationState:
    """A generation as it stands."""

    id: str
    lanes: tuple[LaneSoFar, ...]
    state: str = "waiting"
    """waiting, running, done, stopped or failed."""
    reason: str = ""
    place: int = 0
    """How many must finish first; 0 when it is its turn."""
    version: int = 1
    """Counts up with every change."""

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ENDED


Keep = Callable[[GenerationState], None]
"""Stores how far a generation has come; may block."""


class LiveGenerations:
    """All generations of this process that are under way."""

    def __init__(self, client: Client, keep: Keep) -> None:
        self._client = client
        self._keep = keep
        self._loop: asyncio.AbstractEventLoop | None = None
        self._live: dict[str, _Live] = {}

    def open(self) -> None:
        """Begin to serve, on the event loop that runs now."""
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        """End everything that is under way; what was said is kept."""
        lives = list(self._live.values())
        for live in lives:
            live.task.cancel()
        await asyncio.gather(*(live.task for live in lives), return_exceptions=True)

    def require_room(self) -> None:
        """Raise WorkerBusy when too many are under way already."""
        if len(self._live) >= MOST:
            fact = f"{len(self._live)} generations are under way or wait already."
            raise WorkerBusy(fact, remedy="Try again in a moment; what you typed is kept.")

    def start(self, request: GenerationRequest) -> None:
        """Begin a generation whose row is stored already; may be called from any thread."""
        assert self._loop is not None, "the broadcast is opened when the server starts"

        async def begin() -> None:
            self._live[request.id] = _Live(request, self._client, self._keep, self._forget)

        asyncio.run_coroutine_threadsafe(begin(), self._loop).result(10)

    def so_far(self, generation: str) -> GenerationState | None:
        """How far a generation is; None when it is not under way here. May be called from any thread."""
        live = self._live.get(generation)
        return live.so_far if live else None

    def stop(self, generation: str) -> bool:
        """End a generation within one token; False when it is not under way here. May be called from any thread."""
        live = self._live.get(generation)
        if live is None or self._loop is None:
            return False
        asyncio.run_coroutine_threadsafe(live.stop(), self._loop)
        return True

    async def follow(self, generation: str) -> AsyncIterator[GenerationState]:
        """Yield how far a generation is, now and after changes, until it has finished; nothing if it is not here.

        A slow follower skips to the newest state.
        """
        live = self._live.get(generation)
        seen = 0
        while live is not None:
            so_far = live.so_far
            if so_far.version > seen:
                seen = so_far.version
                yield so_far
            if so_far.finished:
                return
            await live.changed_after(seen)

    def _forget(self, generation: str) -> None:
        self._live.pop(generation, None)


class _Live:
    """One generation under way, and the task that listens to the worker."""

    def __init__(self, request: GenerationRequest, client: Client, keep: Keep, forget: Callable[[str], None]) -> None:
        self.so_far = GenerationState(
            request.id, tuple(LaneSoFar(lane.source, lane.strength) for lane in request.lanes)
        )
        self._request, self._client, self._keep, self._forget = request, client, keep, forget
        self._changed = asyncio.Event()
        self._over = asyncio.Event()
        self._stopped = False
        self.task = asyncio.create_task(self._run())

    async def changed_after(self, version: int) -> None:
        """Wait until there is something newer."""
        while self.so_far.version <= version:
            await self._changed.wait()

    async def stop(self) -> None:
        """Ask the worker to end it; hang up if it does not listen."""
        self._stopped = True
        try:
            await self._client.stop(self._request.id)
        except ReaderError:
            self.task.cancel()
            return
        # The worker says itself that it stopped, unless it waits for a model or does not know the request yet.
        await asyncio.wait([self.task], timeout=1.0)
        if not self.task.done():
            self.task.cancel()

    async def _run(self) -> None:
        keeper = asyncio.create_task(self._keep_regularly())
        state, reason = await self._listen()
        self._over.set()
        await keeper
        await self._end(state, reason)

    async def _listen(self) -> tuple[str, str]:
        """Hear the worker out; state and reason of the end, however it comes."""
        try:
            async with contextlib.aclosing(self._client.generate(self._request)) as answers:
                async for answer in answers:
                    self._hear(answer)
        except ReaderError as error:
            return "failed", str(error)
        except asyncio.CancelledError:
            if self._stopped:
                return "stopped", ""
            return "failed", "The explorer was shut down while this was running. Run it again."
        except Exception as error:
            log.exception("generation %s failed", self._request.id)
            return "failed", f"The explorer made a mistake ({type(error).__name__}). Its log has the details."
        return self._outcome()

    def _outcome(self) -> tuple[str, str]:
        """State of the whole, from those of its lanes."""
        states = {lane.state for lane in self.so_far.lanes}
        if self._stopped or "stopped" in states:
            return "stopped", ""
        if states == {"done"}:
            return "done", ""
        reasons = dict.fromkeys(lane.reason for lane in self.so_far.lanes if lane.state == "failed")
        return "failed", " ".join(reasons) or "The inference worker ended this without a word. Run it again."

    def _hear(self, answer: Answer) -> None:
        match answer.kind:
            case "queued":
                self._update(place=answer.place)
            case "loading":
                self._update(place=0, state="running")
                self._update_lane(answer.lane, state="loading")
            case "began":
                self._update_lane(answer.lane, state="running", prompt=answer.prompt, writes=answer.writes)
            case "said":
                self._update_lane(answer.lane, text=answer.text, tokens=answer.tokens, seconds=answer.seconds)
            case "ended":
                self._update_lane(answer.lane, state=answer.state, reason=answer.reason)

    def _update_lane(self, place: int, **changes: object) -> None:
        lanes = list(self.so_far.lanes)
        lanes[place] = replace(lanes[place], changed=self.so_far.version + 1, **changes)  # type: ignore[arg-type]
        self._update(lanes=tuple(lanes))

    def _update(self, **changes: object) -> None:
        self.so_far = replace(self.so_far, version=self.so_far.version + 1, **changes)  # type: ignore[arg-type]
        self._changed.set()
        self._changed = asyncio.Event()

    async def _keep_regularly(self) -> None:
        """Save every now and then, also while nothing is said: that shows that somebody still listens."""
        while not self._over.is_set():
            await self._keep_safely(self.so_far)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), KEEP_EVERY)

    async def _keep_safely(self, so_far: GenerationState) -> None:
        """A database that is busy or gone for a moment does not end a generation."""
        try:
            await asyncio.to_thread(self._keep, so_far)
        except Exception:
            log.exception("generation %s could not be saved", so_far.id)

    async def _end(self, state: str, reason: str) -> None:
        """Lanes that were left open end as the whole did; saved before anybody hears that it is over."""
        for place, lane in enumerate(self.so_far.lanes):
            if lane.state not in ENDED:
                self._update_lane(place, state=state, reason=reason)
        final = replace(self.so_far, version=self.so_far.version + 1, state=state, reason=reason, place=0)
        await self._keep_safely(final)
        self._update(state=state, reason=reason, place=0)
        self._forget(self._request.id)
