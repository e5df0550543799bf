"""Server: the explorer in this process, or as a child process beside a run."""

import contextlib
import dataclasses
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import webbrowser
from collections.abc import Callable, Iterator

from app.settings import Settings
from trainer.errors import CrossdiffError

START_LIMIT = 60.0
"""Seconds the explorer may take to answer for the first time."""
STOP_LIMIT = 10.0
"""Seconds it may take to end after it was asked to."""


class PortInUse(CrossdiffError):
    """The explorer cannot listen where it should; most often another program does."""


class ServerFailed(CrossdiffError):
    """The explorer ended before it ever answered."""


def listening_settings(host: str | None, port: int | None) -> Settings:
    """Settings from the environment with what the command line says on top."""
    chosen = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    return dataclasses.replace(Settings.from_environment(), **chosen)  # type: ignore[arg-type]


def address_of(settings: Settings) -> str:
    """Where a browser on this machine finds the explorer."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def require_free_port(settings: Settings) -> None:
    """Raise PortInUse when the explorer cannot listen, and say whether another explorer already does."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise PortInUse(_why_not(settings, error)) from error


def _why_not(settings: Settings, error: OSError) -> str:
    """What is in the way of listening, with the remedy."""
    if error.errno not in (errno.EADDRINUSE, errno.EACCES):
        return f"{settings.host!r} is no address of this machine ({error.strerror}). Give one with --host."
    other = settings.port + 1 if 1023 < settings.port < 65535 else 8000
    remedy = f"choose another port with --port {other} (with make: ARGS='--port {other}')"
    if error.errno == errno.EACCES:
        return f"Port {settings.port} is for administrators only. Instead, {remedy}."
    if answers(settings):
        return f"An explorer already runs at {address_of(settings)}. Open it there, or {remedy}."
    return f"Port {settings.port} of {settings.host} is in use. Stop the program that has it, or {remedy}."


def answers(settings: Settings) -> bool:
    """Whether an explorer answers at the address."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{address_of(settings)}/healthz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def serve_pages(settings: Settings, *, until_input_ends: bool = False) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises PortInUse."""
    require_free_port(settings)
    import uvicorn

    from app.main import create_app

    if until_input_ends:
        threading.Thread(target=_end_with_input, daemon=True).start()
    else:
        sys.stderr.write(f"The explorer is at {address_of(settings)} (Ctrl-C ends it)\n")
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_level="warning",
        timeout_graceful_shutdown=3,
        server_header=False,
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run()


@contextlib.contextmanager
def explorer(settings: Settings) -> Iterator[tuple[str, Callable[[], None]]]:
    """The explorer as a child process: its address, and a function that waits until it ends.

    Raises PortInUse, or ServerFailed when it does not come up. The child ends with the body, and also when
    this process is killed.
    """
    require_free_port(settings)
    log = settings.home / "serve.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "app.cli", "serve", "--until-input-ends"]
    command += ["--host", settings.host, "--port", str(settings.port)]
    environment = {**os.environ, "CROSSDIFF_HOME": str(settings.home)}
    with log.open("w", encoding="utf-8") as output:
        # A session of its own keeps Ctrl-C for this process, which then ends the child in its own time.
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        _wait_until_it_answers(child, settings, log=str(log))
        yield address_of(settings), lambda: _wait_for(child, log=str(log))
    finally:
        _end(child)


def open_browser(address: str) -> None:
    """Open the page in a browser if this machine has a screen."""
    if sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        with contextlib.suppress(webbrowser.Error):
            webbrowser.open(address)


def _wait_until_it_answers(child: "subprocess.Popen[bytes]", settings: Settings, *, log: str) -> None:
    deadline = time.monotonic() + START_LIMIT
    while not answers(settings):
        if child.poll() is not None or time.monotonic() > deadline:
            raise ServerFailed(f"The explorer did not start. {log} says why; mend that and run the command again.")
        time.sleep(0.1)


def _wait_for(child: "subprocess.Popen[bytes]", *, log: str) -> None:
    child.wait()
    raise ServerFailed(f"The explorer ended. {log} says why; `crossdiff serve` starts it again.")


def _end(child: "subprocess.Popen[bytes]") -> None:
    child.terminate()
    try:
        child.wait(STOP_LIMIT)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if child.stdin is not None:
        child.stdin.close()


def _end_with_input() -> None:
    """The process that started this one holds the other end; when it is gone, however it went, end too."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
