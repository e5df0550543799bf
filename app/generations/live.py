"""Runs generations, and gives their text so far to everybody who follows them.

Each runs as a task of the web process, independent of its viewers: following, reloading or a second viewer never starts
anything, and nobody has to stay until it ends. Generations of another process that shares the database are followed in
there.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Engine

from app.database.engine import transaction
from app.errors import NotFound, ReaderError
from app.generations.generation import Generation
from app.generations.store import find_generation, save_generation
from app.inference.client import Client, WorkerBusy
from app.inference.messages import Answer, GenerationRequest

log = logging.getLogger("crossdiff.generations")

Value = TypeVar("Value")

LARGEST_COUNT = 9
"""Generations under way at once, those included that wait for the worker."""
SAVE_EVERY = 2.0
"""Seconds between two savings of a generation under way."""
POLL_EVERY = 1.0
"""Seconds between two reads of a generation that another process of this explorer runs."""
START_TIMEOUT = 15.0
"""Seconds that the event loop may take to accept a new generation."""
ADMISSION_TIMEOUT = 8.0
"""Seconds that a worker which runs and answers may take to admit or refuse a new generation."""


class CannotStop(ReaderError):
    """The generation runs elsewhere."""

    status = 409
    title = "Not stopped"


@dataclass(frozen=True)
class GenerationSnapshot:
    """A generation at one moment of its life."""

    generation: Generation
    version: int = 0
    """Counts up with every change; 0 when read from storage."""
    changed: tuple[int, ...] = ()
    """Version in which each lane last changed; empty when read from storage."""

    def lanes_changed_since(self, version: int) -> frozenset[int]:
        """Indices of the lanes that changed after a version; all of them when read from storage."""
        if not self.changed:
            return frozenset(range(len(self.generation.lanes)))
        return frozenset(index for index, changed in enumerate(self.changed) if changed > version)


class LiveGenerations:
    """All generations of this process that are under way, and those in the database."""

    def __init__(self, client: Client, database: Engine) -> None:
        self._client = client
        self._database = database
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: dict[str, _RunningGeneration] = {}

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Accept generations on the event loop that runs now; at the end, stop and save all that are under way."""
        self._loop = asyncio.get_running_loop()
        try:
            yield
        finally:
            running = list(self._running.values())
            for one in running:
                one.task.cancel()
            await asyncio.gather(*(one.task for one in running), return_exceptions=True)

    def require_capacity(self) -> None:
        """Raise WorkerBusy when too many are under way already."""
        if len(self._running) >= LARGEST_COUNT:
            fact = f"{len(self._running)} generations are under way or wait already."
            raise WorkerBusy(fact, remedy="Try again in a moment; what you typed is kept.")

    def start(self, generation: Generation, request: GenerationRequest) -> None:
        """Start a generation that is stored and committed; may be called from any thread.

        Raises WorkerBusy when the worker refuses it at once, which others may ask too; one that has to be started
        first, or is slow, is not waited for.
        """
        patience = ADMISSION_TIMEOUT if self._client.running else 0.0

        async def begin() -> None:
            running = self._running[generation.id] = _RunningGeneration(
                generation, request, self._client, self._save, lambda: self._running.pop(generation.id, None)
            )
            await running.admitted(patience)

        self._wait_for(begin())

    def _wait_for(self, work: Coroutine[object, object, Value]) -> Value:
        """Run on the event loop, for a thread that waits."""
        assert self._loop is not None, "opened when the server starts"
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_TIMEOUT)

    def snapshot(self, generation: str) -> GenerationSnapshot:
        """A generation as it stands, under way or stored. May be called from any thread. Raises NotFound."""
        # Under way first: what has ended here since then is in storage already.
        running = self._running.get(generation)
        if running is not None:
            return running.snapshot
        stored = self._stored(generation)
        if stored is None:
            raise NotFound("There is no such generation.", remedy="Check the address; it may have been cut off.")
        return GenerationSnapshot(stored)

    def stop(self, generation: str) -> None:
        """End a generation within one token, also one that another explorer runs on the same worker.

        May be called from any thread. Raises CannotStop when it runs on another worker, and WorkerUnreachable.
        """
        running = self._running.get(generation)
        if running is not None and self._loop is not None:
            asyncio.run_coroutine_threadsafe(running.stop(), self._loop)
        elif not self.snapshot(generation).generation.finished and not self._wait_for(self._client.stop(generation)):
            fact = "Another explorer runs this generation, with models that are out of reach from here."
            raise CannotStop(fact, remedy="Stop it there, or wait for its end.")

    async def follow(self, generation: str) -> AsyncIterator[GenerationSnapshot]:
        """Yield a generation now and after changes, until it has finished; nothing if there is none.

        A slow follower skips to the newest snapshot.
        """
        running = self._running.get(generation)
        seen = 0
        while running is not None:
            snapshot = running.snapshot
            if snapshot.version > seen:
                seen = snapshot.version
                yield snapshot
            if snapshot.generation.finished:
                return
            await running.newer_than(seen)
        while (stored := await asyncio.to_thread(self._stored, generation)) is not None:
            yield GenerationSnapshot(stored)
            if stored.finished:
                return
            await asyncio.sleep(POLL_EVERY)

    def _stored(self, generation: str) -> Generation | None:
        with transaction(self._database) as session:
            return find_generation(session, generation)

    def _save(self, generation: Generation) -> None:
        with transaction(self._database, writing=True) as session:
            save_generation(session, generation)


class _RunningGeneration:
    """One generation under way, and the task that reads the worker's answers."""

    def __init__(
        self,
        generation: Generation,
        request: GenerationRequest,
        client: Client,
        save: Callable[[Generation], None],
        forget: Callable[[], object],
    ) -> None:
        self.snapshot = GenerationSnapshot(generation, 1, (1,) * len(generation.lanes))
        self._request, self._client, self._save, self._forget = request, client, save, forget
        self._changed = asyncio.Event()
        self._over = asyncio.Event()
        self._stopped = False
        self._admission = asyncio.Event()
        self._refusal: WorkerBusy | None = None
        self.task = asyncio.create_task(self._run())

    async def admitted(self, patience: float) -> None:
        """Wait until the worker has answered, but not for longer than this. Raises WorkerBusy when it refused."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._admission.wait(), patience)
        if self._refusal is not None:
            raise self._refusal

    async def newer_than(self, version: int) -> None:
        """Wait until there is a newer snapshot."""
        while self.snapshot.version <= version:
            await self._changed.wait()

    async def stop(self) -> None:
        """Ask the worker to end it; close the connection if the worker does not react."""
        self._stopped = True
        try:
            await self._client.stop(self._request.id)
        except ReaderError:
            self.task.cancel()
            return
        # The worker reports the end itself, unless it waits for a model or does not know the request yet.
        await asyncio.wait([self.task], timeout=1.0)
        if not self.task.done():
            self.task.cancel()

    async def _run(self) -> None:
        saving = asyncio.create_task(self._save_regularly())
        state, reason = await self._read_answers()
        self._over.set()
        await saving
        await self._end(state, reason)
        self._admission.set()

    async def _read_answers(self) -> tuple[str, str]:
        """Read all answers; state and reason of the end, however it comes."""
        try:
            async with contextlib.aclosing(self._client.generate(self._request)) as answers:
                async for answer in answers:
                    self._admission.set()
                    self._apply(answer)
        except ReaderError as error:
            if isinstance(error, WorkerBusy):
                self._refusal = error
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
        lanes = self.snapshot.generation.lanes
        states = {lane.state for lane in lanes}
        if self._stopped or "stopped" in states:
            return "stopped", ""
        if states == {"done"}:
            return "done", ""
        reasons = dict.fromkeys(lane.reason for lane in lanes if lane.state == "failed")
        return "failed", " ".join(reasons) or "The inference worker ended this without a reason. Run it again."

    def _apply(self, answer: Answer) -> None:
        match answer.kind:
            case "queued":
                self._update(place=answer.place)
            case "loading":
                self._update(place=0, state="running")
                self._update_lane(answer.lane, state="loading")
            case "started":
                self._update_lane(answer.lane, state="running", prompt=answer.prompt, writes=answer.writes)
            case "text":
                self._update_lane(answer.lane, text=answer.text, tokens=answer.tokens, seconds=answer.seconds)
            case "ended":
                self._update_lane(answer.lane, state=answer.state, reason=answer.reason)

    def _update_lane(self, index: int, **changes: object) -> None:
        lanes, changed = list(self.snapshot.generation.lanes), list(self.snapshot.changed)
        lanes[index] = lanes[index].model_copy(update=changes)
        changed[index] = self.snapshot.version + 1
        self._update(changed=tuple(changed), lanes=tuple(lanes))

    def _update(self, *, changed: tuple[int, ...] | None = None, **changes: object) -> None:
        before = self.snapshot
        generation = before.generation.model_copy(update=changes)
        self.snapshot = GenerationSnapshot(generation, before.version + 1, changed or before.changed)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _save_regularly(self) -> None:
        """Save every now and then, also without news: `updated_at` shows that the server still runs."""
        while not self._over.is_set():
            await self._try_to_save(self.snapshot.generation)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), SAVE_EVERY)

    async def _try_to_save(self, generation: Generation) -> None:
        """A database that is busy or gone for a moment does not end a generation."""
        try:
            await asyncio.to_thread(self._save, generation)
        except Exception:
            log.exception("generation %s could not be saved", generation.id)

    async def _end(self, state: str, reason: str) -> None:
        """Lanes that were left open end as the whole did; saved before any follower sees the end."""
        for index, lane in enumerate(self.snapshot.generation.lanes):
            if lane.state not in ("done", "stopped", "failed"):
                self._update_lane(index, state=state, reason=reason)
        ending = self.snapshot.generation.model_copy(update={"state": state, "reason": reason, "place": 0})
        await self._try_to_save(ending)
        self._update(state=state, reason=reason, place=0)
        self._forget()
