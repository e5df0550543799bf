"""Worker: the process that owns the models.

    python -m app.worker.server --socket PATH

It answers over a private Unix socket, or over TCP to who shows the token of CROSSDIFF_WORKER_TOKEN. torch and the
models are loaded when they are first needed.
"""

import argparse
import asyncio
import logging
import os
import re
import secrets
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app.inference.messages import Answer, Finished, GenerationRequest, Loading, Queued, SourceState, explain
from app.worker.admission_queue import AdmissionQueue, Full, Slot
from app.worker.model_cache import ModelCache
from trainer.errors import CrossdiffError
from trainer.recipe.recipe import load_recipe
from trainer.run.folder import RunFolder

log = logging.getLogger("crossdiff.worker")

RUNNING, WAITING = 1, 8
"""Generations at once, and how many may wait beside them."""
RETRY_AFTER = 10
"""Seconds after which to ask again when the line is full."""
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class Admission:
    """A request that was admitted: its place in the line, and how to call it off."""

    def __init__(self, request: GenerationRequest, ticket: Slot) -> None:
        self.request = request
        self.ticket = ticket
        self.called_off = threading.Event()
        self.work: asyncio.Task[None] | None = None


class Worker:
    """Holds the models and does one errand after another."""

    def __init__(self, home: Path, shelf: ModelCache, desk: AdmissionQueue) -> None:
        self._home = home
        self._shelf = shelf
        self._desk = desk
        self._errands: dict[str, Admission] = {}

    def folder(self, run: str) -> RunFolder:
        """The folder of a run. Raises HTTPException 404 when there is none."""
        folder = RunFolder(self._home / "runs" / run)
        if not RUN_NAME.fullmatch(run) or not folder.recipe.is_file():
            raise HTTPException(404, f"No run named {run!r} is where the worker looks.")
        return folder

    def states(self, run: str) -> list[SourceState]:
        """How far the model of each source of a run is."""
        try:
            return [self._shelf.state(source) for source in load_recipe(self.folder(run).recipe).sources]
        except CrossdiffError as error:
            raise HTTPException(422, str(error)) from None

    def admit(self, request: GenerationRequest) -> Admission:
        """Give a place in the line. Raises HTTPException 409 for an id that is at work, 503 when the line is full."""
        if request.id in self._errands:
            raise HTTPException(409, "This generation is running already.")
        try:
            errand = Admission(request, self._desk.enter())
        except Full:
            headers = {"Retry-After": str(RETRY_AFTER)}
            raise HTTPException(503, f"{WAITING} generations wait already. Try again in a moment.", headers) from None
        self._errands[request.id] = errand
        return errand

    def call_off(self, generation: str) -> bool:
        """End a generation within one token; False when there is none of that id."""
        errand = self._errands.get(generation)
        if errand is not None:
            errand.called_off.set()
        return errand is not None

    async def answers(self, errand: Admission) -> AsyncIterator[Answer]:
        """Everything there is to say about a generation, in order."""
        async for place in self._desk.places(errand.ticket):
            yield Queued(place=place)
        for lane in range(len(errand.request.lanes)):
            yield Loading(lane=lane)
        loop, said = asyncio.get_running_loop(), asyncio.Queue[Answer | None]()

        def emit(answer: Answer | None) -> None:
            loop.call_soon_threadsafe(said.put_nowait, answer)

        errand.work = asyncio.create_task(asyncio.to_thread(self._work, errand, emit))
        while (answer := await said.get()) is not None:
            yield answer
        yield Finished()

    def _work(self, errand: Admission, emit: Callable[[Answer | None], None]) -> None:
        """In a thread: run the job, and say None at its end."""
        try:
            from app.worker.job import Job  # loads torch

            Job(errand.request, self.folder(errand.request.run), self._shelf, emit, errand.called_off).run()
        except Exception:
            log.exception("generation %s failed", errand.request.id)
        finally:
            emit(None)

    def finish(self, errand: Admission) -> None:
        """Nobody listens any more: end it, and let the next one in when its last token is done."""
        errand.called_off.set()
        if errand.work is None or errand.work.done():
            self._forget(errand)
        else:
            errand.work.add_done_callback(lambda _: self._forget(errand))

    def _forget(self, errand: Admission) -> None:
        self._errands.pop(errand.request.id, None)
        self._desk.leave(errand.ticket)


class Lines(StreamingResponse):
    """An errand's answers as lines of JSON; however the connection ends, the errand ends with it."""

    media_type = "application/x-ndjson"

    def __init__(self, worker: Worker, errand: Admission) -> None:
        super().__init__(self._lines(worker, errand))
        self._worker, self._errand = worker, errand

    @staticmethod
    async def _lines(worker: Worker, errand: Admission) -> AsyncIterator[str]:
        async for answer in worker.answers(errand):
            yield answer.model_dump_json() + "\n"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until all is said or the other side is gone."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._worker.finish(self._errand)


class Bearer:
    """Answers 401 to everybody who does not show the token; only whether it is alive may be asked without."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what carries the token."""
        shown = dict(scope.get("headers", [])).get(b"authorization", b"")
        guarded = scope["type"] == "http" and scope["path"] != "/healthz"
        if guarded and not secrets.compare_digest(shown, self._expected):
            await JSONResponse({"detail": "Wrong or missing token."}, 401)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def create_worker(home: Path, *, token: str | None = None, shelf: ModelCache | None = None) -> FastAPI:
    """The worker as an ASGI application; with a token it answers only to who shows it."""
    app = FastAPI(title="Crossdiff inference worker", docs_url=None, redoc_url=None, openapi_url=None)
    worker = Worker(home, shelf or ModelCache(), AdmissionQueue(running=RUNNING, waiting=WAITING))
    if token:
        app.add_middleware(Bearer, token=token)

    @app.exception_handler(RequestValidationError)
    def refuse(request: Request, error: RequestValidationError) -> Response:  # noqa: ARG001
        # Without the values: they may be what JSON cannot hold.
        return JSONResponse({"detail": " ".join(explain(problem) for problem in error.errors())}, 422)

    @app.get("/healthz")
    def health() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/runs/{run}/sources")
    def sources(run: str) -> list[SourceState]:
        return worker.states(run)

    @app.post("/generations")
    async def generations(asked: GenerationRequest) -> Response:
        worker.folder(asked.run)
        return Lines(worker, worker.admit(asked))

    @app.delete("/generations/{generation}")
    async def stop(request: Request, generation: str) -> Response:  # noqa: ARG001
        return Response(status_code=204 if worker.call_off(generation) else 404)

    return app


def serve_worker(
    home: Path, *, socket: Path | None, host: str, port: int, token: str | None, until_input_ends: bool = False
) -> None:
    """Serve until a signal, on a Unix socket if one is given, else over TCP."""
    os.environ["CROSSDIFF_HOME"] = str(home)  # the trainer finds models there
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait leave the cores to others
    if until_input_ends:
        threading.Thread(target=_end_with_input, daemon=True).start()
    where = {"uds": str(socket)} if socket else {"host": host, "port": port}
    config = uvicorn.Config(
        create_worker(home, token=token),
        **where,
        log_level="warning",
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    uvicorn.Server(config).run()


def main(arguments: list[str] | None = None) -> None:
    """Command line of the process that the server starts; people use `crossdiff worker`."""
    parser = argparse.ArgumentParser(prog="python -m app.worker.server", description="Own the models and steer them.")
    parser.add_argument("--home", type=Path, default=Path(os.environ.get("CROSSDIFF_HOME") or "data"))
    parser.add_argument("--socket", type=Path, help="Unix socket to answer on, instead of TCP")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--until-input-ends", action="store_true", help="end when standard input does")
    chosen = parser.parse_args(arguments)
    token = os.environ.get("CROSSDIFF_WORKER_TOKEN") or None
    if chosen.socket is None and token is None:
        parser.error("over TCP the worker needs a secret: set CROSSDIFF_WORKER_TOKEN here and for the explorer")
    serve_worker(
        chosen.home.absolute(),
        socket=chosen.socket,
        host=chosen.host,
        port=chosen.port,
        token=token,
        until_input_ends=chosen.until_input_ends,
    )


def _end_with_input() -> None:
    """The process that started this one holds the other end; when it is gone, however it went, end too."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
    os._exit(1)  # a model that loads cannot be interrupted otherwise


if __name__ == "__main__":
    main()
