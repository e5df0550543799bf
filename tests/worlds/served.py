"""Serves the explorer with uvicorn on a free port, for browser tests."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from app.main import create_app
from app.settings import Settings


@contextlib.contextmanager
def served(home: Path, **settings: str) -> Iterator[tuple[str, FastAPI]]:
    """Serve a home in a thread of this process; yields its address and the app."""
    app = create_app(Settings(home=home, **settings))  # type: ignore[arg-type]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}", app
    finally:
        server.should_exit = True
        thread.join(20)
