"""HTTP client of the inference worker: streams a generation's answers; closing the stream ends the generation."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx
from pydantic import TypeAdapter, ValidationError

from app.errors import ReaderError
from app.inference.messages import ANSWER, Answer, GenerationRequest, SourceState

STATES = TypeAdapter(list[SourceState])
GENERATION_TIMEOUT = httpx.Timeout(10.0, read=60.0)
"""The worker says every other second that it lives, also while it loads a model."""
QUICK_TIMEOUT = httpx.Timeout(2.0)
"""For requests that a page waits for."""
QUIET_FOR = 5.0
"""Seconds for which pages do not ask a worker that has just kept one waiting."""


class WorkerUnreachable(ReaderError):
    """The worker does not answer, or ended in the middle."""

    status = 503
    title = "The models are out of reach"


class WorkerBusy(ReaderError):
    """Too many generations wait already."""

    status = 503
    title = "Too many are waiting"


class WorkerRefused(ReaderError):
    """The worker answers, but not to this request."""

    status = 502
    title = "The worker refused"


@dataclass(frozen=True)
class Address:
    """Where a worker answers: on a Unix socket of this machine, or at a URL with a token."""

    url: str = "http://worker"
    socket: str | None = None
    token: str | None = None


class WorkerLocator(Protocol):
    """Finds the worker."""

    @property
    def patience(self) -> float:
        """Seconds to wait for it to answer: long where it is started again by itself."""
        ...

    def address(self) -> Address:
        """Where it answers, started first if need be; may take seconds. Raises WorkerUnreachable."""
        ...

    def known(self) -> Address | None:
        """Where it answers, if it runs already."""
        ...


@dataclass(frozen=True)
class RemoteWorker:
    """A worker that runs elsewhere, at an address from the settings."""

    at: Address
    patience: float = 1.0

    def address(self) -> Address:
        """Its address, whether it runs or not."""
        return self.at

    def known(self) -> Address | None:
        """The same."""
        return self.at


class Client:
    """Talks to the worker, wherever it is now: one that was started again may have moved."""

    def __init__(self, locator: WorkerLocator) -> None:
        self._locator = locator
        self._quiet_until = 0.0

    @property
    def running(self) -> bool:
        """Whether there is a worker, as far as is known, and it has not just kept a page waiting."""
        return self._locator.known() is not None and time.monotonic() > self._quiet_until

    def states_or_absent(self, run: str, sources: Sequence[str]) -> list[SourceState]:
        """Whether the model of each source is loaded; all absent while no worker runs, or when it does not answer."""
        try:
            known = {state.source: state for state in self.states(run)}
        except ReaderError:
            known = {}
        return [known.get(source, SourceState(source=source, state="absent")) for source in sources]

    def states(self, run: str) -> list[SourceState]:
        """Whether the model of each source of a run is loaded; empty while no worker runs.

        Asking starts nothing. Raises WorkerUnreachable or WorkerRefused.
        """
        at = self._locator.known()
        if at is None:
            return []
        if at.socket and not Path(at.socket).exists():
            raise _unreachable(httpx.ConnectError("no socket"))
        if time.monotonic() < self._quiet_until:
            raise _unreachable(httpx.ReadTimeout("a moment ago"))
        try:
            with httpx.Client(
                transport=httpx.HTTPTransport(uds=at.socket),
                base_url=at.url,
                headers=_headers(at),
                timeout=QUICK_TIMEOUT,
            ) as http:
                answer = http.get(f"/runs/{run}/sources")
                _check(answer)
                return STATES.validate_json(answer.content)
        except httpx.TimeoutException as error:
            self._quiet_until = time.monotonic() + QUIET_FOR
            raise _unreachable(error) from error
        except (httpx.HTTPError, ValidationError) as error:
            raise _unreachable(error) from error

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Answer]:
        """Yield the worker's answers until it has finished; leaving the loop earlier ends the generation.

        Raises WorkerUnreachable when the worker is not there or ends in the middle, WorkerBusy, WorkerRefused.
        """
        at = await self._reachable()
        try:
            async with (
                _connected(at, GENERATION_TIMEOUT) as http,
                http.stream("POST", "/generations", json=request.model_dump(mode="json")) as answer,
            ):
                if answer.is_error:
                    await answer.aread()
                _check(answer)
                async for line in _lines(answer):
                    parsed = ANSWER.validate_json(line)
                    if parsed.kind == "alive":
                        continue
                    yield parsed
                    if parsed.kind == "finished":
                        return
        except (httpx.HTTPError, ValidationError) as error:
            raise _unreachable(error) from error
        raise _unreachable(None)

    async def stop(self, generation: str) -> bool:
        """Ask the worker to end a generation, whose stream then ends by itself; False when it has none of that id.

        Raises WorkerUnreachable.
        """
        at = self._locator.known()
        if at is None:
            return False
        try:
            async with _connected(at, QUICK_TIMEOUT) as http:
                return (await http.delete(f"/generations/{generation}")).is_success
        except httpx.HTTPError as error:
            raise _unreachable(error) from error

    async def _reachable(self) -> Address:
        """Where the worker answers, once it does: it may have crashed a moment ago and be starting again."""
        deadline = time.monotonic() + self._locator.patience
        while True:
            at = await asyncio.to_thread(self._locator.address)
            try:
                async with _connected(at, QUICK_TIMEOUT) as http:
                    await http.get("/healthz")
            except httpx.HTTPError as error:
                if time.monotonic() > deadline:
                    raise _unreachable(error) from error
                await asyncio.sleep(0.2)
            else:
                return at


def _connected(at: Address, timeout: httpx.Timeout) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(uds=at.socket)
    return httpx.AsyncClient(transport=transport, base_url=at.url, headers=_headers(at), timeout=timeout)


async def _lines(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Lines that end in LF alone: texts may hold other characters that Unicode counts as line ends."""
    rest = b""
    async for piece in answer.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line


def _headers(at: Address) -> dict[bytes, bytes]:
    return {b"Authorization": f"Bearer {at.token}".encode(errors="surrogateescape")} if at.token else {}


def _check(answer: httpx.Response) -> None:
    if not answer.is_error:
        return
    try:
        detail = str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"It answered {answer.status_code}."
    if answer.status_code == 503:
        raise WorkerBusy(detail, remedy="")
    remedy = {401: "Set the same CROSSDIFF_WORKER_TOKEN for the explorer and the worker."}.get(answer.status_code, "")
    raise WorkerRefused(f"The inference worker refused: {detail}", remedy=remedy)


def _unreachable(error: Exception | None) -> WorkerUnreachable:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        fact = "The inference worker does not answer."
    elif isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout | httpx.PoolTimeout):
        fact = "The inference worker stopped answering."
    elif isinstance(error, ValidationError):
        fact = "The inference worker runs another version of Crossdiff."
    else:
        fact = (
            "The inference worker ended in the middle: a model that is too large for the memory does that, "
            "and a worker that no longer answers is ended."
        )
    return WorkerUnreachable(
        fact, remedy="It is started again by itself; try once more, and see its log if it repeats."
    )
