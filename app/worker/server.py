"""The inference worker: the process that holds the models and answers over HTTP.

    python -m app.worker.server --socket PATH

It listens on a private Unix socket, or on TCP for requests that carry the token of CROSSDIFF_WORKER_TOKEN. torch and
the models are loaded when they are first needed.
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

from app.errors import BadSetting
from app.inference.messages import (
    Alive,
    Answer,
    Ended,
    Finished,
    GenerationRequest,
    Loading,
    Queued,
    SourceState,
    explain,
)
from app.settings import worker_token
from app.worker.admission_queue import AdmissionQueue, QueueFull, Slot
from app.worker.harvested import harvested_revisions
from app.worker.model_cache import ModelCache
from trainer.errors import CrossdiffError
from trainer.recipe.recipe import load_recipe
from trainer.run.folder import RunFolder

log = logging.getLogger("crossdiff.worker")

RUNNING, WAITING = 1, 8
"""Generations at once, and how many may wait."""
RETRY_AFTER = 10
"""Seconds after which to ask again when the queue is full."""
ALIVE_EVERY = 2.0
"""Seconds without news after which a stream says that the worker lives."""
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class Admission:
    """A request that was admitted: its slot in the queue, and the flag that cancels it."""

    def __init__(self, request: GenerationRequest, slot: Slot) -> None:
        self.request = request
        self.slot = slot
        self.cancelled = threading.Event()
        self.work: asyncio.Task[None] | None = None


class Worker:
    """Holds the models and runs one generation after another."""

    def __init__(self, home: Path, models: ModelCache, queue: AdmissionQueue) -> None:
        self._home = home
        self._models = models
        self._queue = queue
        self._admissions: dict[str, Admission] = {}

    def folder(self, run: str) -> RunFolder:
        """The folder of a run. Raises HTTPException 404 when there is none."""
        folder = RunFolder(self._home / "runs" / run)
        if not RUN_NAME.fullmatch(run) or not folder.recipe.is_file():
            raise HTTPException(404, f"No run named {run!r} is where the worker looks.")
        return folder

    def states(self, run: str) -> list[SourceState]:
        """Whether the model of each source of a run is loaded."""
        folder = self.folder(run)
        revisions = harvested_revisions(folder)
        try:
            sources = load_recipe(folder.recipe).sources
            return [self._models.state(source, revisions.get(source.name)) for source in sources]
        except CrossdiffError as error:
            raise HTTPException(422, str(error)) from None

    def admit(self, request: GenerationRequest) -> Admission:
        """Take a slot in the queue. Raises HTTPException 409 for an id that is running, 503 when the queue is full."""
        if request.id in self._admissions:
            raise HTTPException(409, "This generation is running already.")
        try:
            admission = Admission(request, self._queue.enter())
        except QueueFull:
            headers = {"Retry-After": str(RETRY_AFTER)}
            raise HTTPException(503, f"{WAITING} generations wait already. Try again in a moment.", headers) from None
        self._admissions[request.id] = admission
        return admission

    def cancel(self, generation: str) -> bool:
        """End a generation within one token; False when there is none of that id."""
        admission = self._admissions.get(generation)
        if admission is None:
            return False
        admission.cancelled.set()
        if admission.work is None:
            self._queue.leave(admission.slot)
        return True

    async def answers(self, admission: Admission) -> AsyncIterator[Answer]:
        """All answers of a generation, in order."""
        async for place in self._queue.places(admission.slot):
            yield Queued(place=place)
        if admission.cancelled.is_set():
            for lane in range(len(admission.request.lanes)):
                yield Ended(lane=lane, state="stopped", reason="")
            yield Finished()
            return
        for lane in range(len(admission.request.lanes)):
            yield Loading(lane=lane)
        loop, emitted = asyncio.get_running_loop(), asyncio.Queue[Answer | None]()

        def emit(answer: Answer | None) -> None:
            loop.call_soon_threadsafe(emitted.put_nowait, answer)

        admission.work = asyncio.create_task(asyncio.to_thread(self._work, admission, emit))
        while (answer := await emitted.get()) is not None:
            yield answer
        yield Finished()

    def _work(self, admission: Admission, emit: Callable[[Answer | None], None]) -> None:
        """In a thread: run the job, and emit None at its end."""
        try:
            from app.worker.job import Job  # loads torch

            Job(admission.request, self.folder(admission.request.run), self._models, emit, admission.cancelled).run()
        except Exception:
            log.exception("generation %s failed", admission.request.id)
        finally:
            emit(None)

    def finish(self, admission: Admission) -> None:
        """The connection is closed: cancel the generation, and free its slot when its last token is done."""
        admission.cancelled.set()
        if admission.work is None or admission.work.done():
            self._forget(admission)
        else:
            admission.work.add_done_callback(lambda _: self._forget(admission))

    def _forget(self, admission: Admission) -> None:
        self._admissions.pop(admission.request.id, None)
        self._queue.leave(admission.slot)


class AnswerStream(StreamingResponse):
    """A generation's answers as lines of JSON; when the connection ends, the generation does."""

    media_type = "application/x-ndjson"

    def __init__(self, worker: Worker, admission: Admission) -> None:
        super().__init__(self._lines(worker, admission))
        self._worker, self._errand = worker, admission

    @staticmethod
    async def _lines(worker: Worker, admission: Admission) -> AsyncIterator[str]:
        async for answer in _with_signs_of_life(worker.answers(admission)):
            yield answer.model_dump_json() + "\n"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until the generation has finished or the client is gone."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._worker.finish(self._errand)


async def _with_signs_of_life(answers: AsyncIterator[Answer]) -> AsyncIterator[Answer]:
    """The answers, and Alive wherever none comes for a while: silence means that the worker is frozen."""
    coming = asyncio.ensure_future(anext(answers, None))
    try:
        while True:
            await asyncio.wait([coming], timeout=ALIVE_EVERY)
            if not coming.done():
                yield Alive()
            elif (answer := coming.result()) is None:
                return
            else:
                coming = asyncio.ensure_future(anext(answers, None))
                yield answer
    finally:
        coming.cancel()


class BearerToken:
    """Answers 401 to requests without the token; only `/healthz` needs none."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode(errors="surrogateescape")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on requests that carry the token."""
        given = dict(scope.get("headers", [])).get(b"authorization", b"")
        guarded = scope["type"] == "http" and scope["path"] != "/healthz"
        if guarded and not secrets.compare_digest(given, self._expected):
            await JSONResponse({"detail": "Wrong or missing token."}, 401)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def create_worker(home: Path, *, token: str | None = None, models: ModelCache | None = None) -> FastAPI:
    """The worker as an ASGI application; with a token it answers only to requests that carry it."""
    app = FastAPI(title="Crossdiff inference worker", docs_url=None, redoc_url=None, openapi_url=None)
    worker = Worker(home, models or ModelCache(), AdmissionQueue(running=RUNNING, waiting=WAITING))
    if token:
        app.add_middleware(BearerToken, token=token)

    @app.exception_handler(RequestValidationError)
    def refuse(request: Request, error: RequestValidationError) -> Response:  # noqa: ARG001
        # Without the values: JSON may be unable to hold them.
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
        return AnswerStream(worker, worker.admit(asked))

    @app.delete("/generations/{generation}")
    async def stop(request: Request, generation: str) -> Response:  # noqa: ARG001
        return Response(status_code=204 if worker.cancel(generation) else 404)

    return app


def serve_worker(
    home: Path, *, socket: Path | None, host: str, port: int, token: str | None, until_input_ends: bool = False
) -> None:
    """Serve until a signal, on a Unix socket if one is given, else over TCP."""
    os.environ["CROSSDIFF_HOME"] = str(home)  # the trainer finds models there
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # waiting threads leave the cores to others
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
    parser = argparse.ArgumentParser(prog="python -m app.worker.server", description="Hold the models and steer them.")
    parser.add_argument("--home", type=Path, default=Path(os.environ.get("CROSSDIFF_HOME") or "data"))
    parser.add_argument("--socket", type=Path, help="Unix socket to answer on, instead of TCP")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--until-input-ends", action="store_true", help="end when standard input does")
    chosen = parser.parse_args(arguments)
    try:
        # A worker on its starter's private socket is asked by nobody else.
        token = None if chosen.until_input_ends else worker_token(os.environ)
    except BadSetting as error:
        parser.error(str(error))
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
    """End this process when standard input closes: the parent, which holds its other end, is gone."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
    os._exit(1)  # a model that loads cannot be interrupted otherwise


if __name__ == "__main__":
    main()
