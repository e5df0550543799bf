"""Clients that send half a request, read nothing or come by the thousand do not keep others out."""

import contextlib
import resource
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from app.web.connections import PatientProtocol

HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\n"
HALVES = [b"", b"G", b"GET / HTTP/1.1\r\nHost: loc", HEAD + b"Content-Length: 10\r\n\r\nabc", HEAD + b"X: y\r\n"]


async def _application(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["path"] == "/endless":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with contextlib.suppress(OSError):
            for _ in range(10_000):
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        return
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@contextlib.contextmanager
def serving() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = uvicorn.Config(_application, port=port, http=PatientProtocol, ws="none", log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield port
    server.should_exit = True
    thread.join(20)


def answer_on(connection: socket.socket) -> bytes:
    """One whole answer."""
    connection.settimeout(5)
    answer = b""
    while not answer.endswith(b"ok"):
        answer += connection.recv(1000)
    return answer


def closed_after(connection: socket.socket, limit: float) -> float:
    """Seconds until the server closes the connection."""
    began = time.monotonic()
    connection.settimeout(limit)
    with contextlib.suppress(ConnectionError):
        while connection.recv(65536):
            pass
    return time.monotonic() - began


@pytest.mark.parametrize("half", HALVES)
def test_half_a_request_is_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch, half: bytes):
    monkeypatch.setattr("app.web.connections.REQUEST_SECONDS", 0.4)
    with serving() as port, socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(half)
        assert closed_after(connection, 5) < 3


def test_a_second_request_is_waited_for_no_longer_than_the_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("app.web.connections.REQUEST_SECONDS", 0.4)
    with serving() as port, socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer_on(connection).startswith(b"HTTP/1.1 200")
        time.sleep(0.8)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer_on(connection).startswith(b"HTTP/1.1 200"), "an idle connection is no half request"
        connection.sendall(b"GET / HT")
        assert closed_after(connection, 5) < 3


def test_who_drips_a_byte_at_a_time_gets_no_more_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("app.web.connections.REQUEST_SECONDS", 0.5)
    with (
        serving() as port,
        socket.create_connection(("127.0.0.1", port)) as connection,
        pytest.raises(ConnectionError),
    ):
        for _ in range(60):
            connection.sendall(b"G")
            time.sleep(0.05)


def test_who_does_not_read_is_let_go(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("app.web.connections.READING_SECONDS", 0.5)
    with serving() as port, socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(1.5)
        read = 0
        connection.settimeout(5)
        with contextlib.suppress(ConnectionError):
            while more := connection.recv(2**20):
                read += len(more)
        assert read < 100_000_000, "cut off, not served to the end"


def test_more_connections_than_fit_push_out_the_oldest_that_wait(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("app.web.connections.most_connections", lambda: 20)
    with serving() as port, contextlib.ExitStack() as open_connections:
        waiting = [open_connections.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(60)]
        for connection in waiting:
            with contextlib.suppress(ConnectionError):
                connection.sendall(HEAD)
        began = time.monotonic()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            assert answer.read() == b"ok"
        assert time.monotonic() - began < 2


@pytest.mark.slow
def test_a_thousand_half_requests_leave_the_explorer_reachable_and_its_log_short(tiny_home: Path, tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip("needs 2,000 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4000), hard))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "log"
    command = f"ulimit -n 1024; exec {sys.executable} -m app.cli serve --port {port}"
    with log.open("w") as output:
        environment = {"CROSSDIFF_HOME": str(tiny_home), "PATH": "/usr/bin:/bin"}
        server = subprocess.Popen(["bash", "-c", command], stdout=output, stderr=output, env=environment)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2).close()
                break
            time.sleep(0.1)
        with contextlib.ExitStack() as open_connections:
            for _ in range(1200):
                connection = open_connections.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
                with contextlib.suppress(ConnectionError):
                    connection.sendall(HEAD)
            for _ in range(5):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
                    assert answer.status == 200
                time.sleep(0.5)
        assert log.stat().st_size < 20_000
    finally:
        server.terminate()
        server.wait(20)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
