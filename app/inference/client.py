"""Client: ask the worker for a generation and hear its answers; hanging up ends it."""

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx
from pydantic import TypeAdapter, ValidationError

from app.errors import ReaderError
from app.inference.messages import ANSWER, Answer, GenerationRequest, SourceState

STATES = TypeAdapter(list[SourceState])
PATIENCE = httpx.Timeout(10.0, read=600.0)
"""Loading a large model may take minutes between two answers; everything else is quick."""
GLANCE = httpx.Timeout(2.0)
"""For questions that a page waits for."""


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
    """Knows where the worker is."""

    @property
    def patience(self) -> float:
        """Seconds to wait for it to answer: long where it is started again by itself."""
        ...

    def address(self) -> Address:
        """Where it answers, after it was started if need be; may take seconds. Raises WorkerUnreachable."""
        ...

    def known(self) -> Address | None:
        """Where it answers, if it runs already."""
        ...


@dataclass(frozen=True)
class RemoteWorker:
    """A worker that somebody else starts."""

    at: Address
    patience: float = 1.0

    def address(self) -> Address:
        """Where it was said to be."""
        return self.at

    def known(self) -> Address | None:
        """The same."""
        return self.at


class Client:
    """Talks to the worker, wherever it is now: one that was started again may have moved."""

    def __init__(self, whereabouts: WorkerLocator) -> None:
        self._whereabouts = whereabouts

    def states(self, run: str) -> list[SourceState]:
        """How far the model of each source of a run is; nothing while there is no worker yet.

        Asking starts nothing. Raises WorkerUnreachable or WorkerRefused.
        """
        at = self._whereabouts.known()
        if at is None:
            return []
        if at.socket and not Path(at.socket).exists():
            raise _unreachable(httpx.ConnectError("no socket"))
        try:
            with httpx.Client(
                transport=httpx.HTTPTransport(uds=at.socket), base_url=at.url, headers=_headers(at), timeout=GLANCE
            ) as http:
                answer = http.get(f"/runs/{run}/sources")
                _check(answer)
                return STATES.validate_json(answer.content)
        except (httpx.HTTPError, ValidationError) as error:
            raise _unreachable(error) from error

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Answer]:
        """Yield the worker's answers until it has finished; leaving the loop earlier ends the generation.

        Raises WorkerUnreachable when the worker is not there or ends in the middle, WorkerBusy, WorkerRefused.
        """
        at = await self._awake()
        try:
            async with (
                _connected(at, PATIENCE) as http,
                http.stream("POST", "/generations", json=request.model_dump(mode="json")) as answer,
            ):
                if answer.is_error:
                    await answer.aread()
                _check(answer)
                async for line in answer.aiter_lines():
                    said = ANSWER.validate_json(line)
                    yield said
                    if said.kind == "finished":
                        return
        except (httpx.HTTPError, ValidationError) as error:
            raise _unreachable(error) from error
        raise _unreachable(None)

    async def stop(self, generation: str) -> None:
        """Ask that a generation ends; it then says so itself. Raises WorkerUnreachable."""
        at = self._whereabouts.known()
        if at is None:
            return
        try:
            async with _connected(at, GLANCE) as http:
                await http.delete(f"/generations/{generation}")
        except httpx.HTTPError as error:
            raise _unreachable(error) from error

    async def _awake(self) -> Address:
        """Where the worker answers, once it does: it may have ended a moment ago and be starting again."""
        deadline = time.monotonic() + self._whereabouts.patience
        while True:
            at = await asyncio.to_thread(self._whereabouts.address)
            try:
                async with _connected(at, GLANCE) as http:
                    await http.get("/healthz")
            except httpx.HTTPError as error:
                if time.monotonic() > deadline:
                    raise _unreachable(error) from error
                await asyncio.sleep(0.2)
            else:
                return at


def _connected(at: Address, patience: httpx.Timeout) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(uds=at.socket)
    return httpx.AsyncClient(transport=transport, base_url=at.url, headers=_headers(at), timeout=patience)


def _headers(at: Address) -> dict[str, str]:
    return {"Authorization": f"Bearer {at.token}"} if at.token else {}


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
        fact = "The inference worker speaks another version of this program's language."
    else:
        fact = "The inference worker ended in the middle; a model that is too large for the memory does that."
    return WorkerUnreachable(
        fact, remedy="It is started again by itself; try once more, and see its log if it repeats."
    )
