"""Serves the explorer in this process, or in a child process beside a run."""

import contextlib
import dataclasses
import errno
import logging
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
"""Seconds until the explorer must respond for the first time."""
STOP_LIMIT = 10.0
"""Seconds it may take to exit after SIGTERM, before it is killed."""


class PortInUse(CrossdiffError):
    """The explorer cannot bind its port, usually because another program listens there."""


class ServerFailed(CrossdiffError):
    """The explorer's process did not start, or ended unexpectedly."""


def listening_settings(host: str | None, port: int | None) -> Settings:
    """Settings from the environment, overridden by the command line."""
    chosen = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    return dataclasses.replace(Settings.from_environment(), **chosen)  # type: ignore[arg-type]


def explorer_url(settings: Settings) -> str:
    """URL at which a browser on this machine reaches the explorer."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def require_free_port(settings: Settings) -> None:
    """Raise PortInUse when the port cannot be bound; the message says whether another explorer has it."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise PortInUse(_bind_problem(settings, error)) from error


def _bind_problem(settings: Settings, error: OSError) -> str:
    """Why the port cannot be bound, with the remedy."""
    if error.errno not in (errno.EADDRINUSE, errno.EACCES):
        return f"{settings.host!r} is not an address of this machine ({error.strerror}). Give one with --host."
    other = settings.port + 1 if 1023 < settings.port < 65535 else 8000
    remedy = f"choose another port with --port {other} (with make: ARGS='--port {other}')"
    if error.errno == errno.EACCES:
        return f"Port {settings.port} is reserved for administrators. Instead, {remedy}."
    if explorer_responds(settings):
        return f"An explorer already runs at {explorer_url(settings)}. Open it there, or {remedy}."
    return f"Port {settings.port} of {settings.host} is in use. Stop the program that has it, or {remedy}."


def explorer_responds(settings: Settings) -> bool:
    """Whether an explorer responds at the address."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{explorer_url(settings)}/healthz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def serve_pages(settings: Settings, *, until_input_ends: bool = False) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises PortInUse."""
    require_free_port(settings)
    import uvicorn

    from app.main import create_app
    from app.web.connections import KEEP_ALIVE_SECONDS, LARGEST_HEAD, PatientProtocol

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started and not until_input_ends:
                sys.stderr.write(f"The explorer is at {_addresses(settings)} (Ctrl-C ends it)\n")

    if settings.beyond_loopback:
        sys.stderr.write(
            f"The explorer listens on {settings.host}, beyond this machine: anybody who can reach it may read all "
            "results and write labels; there are no accounts. Put a proxy with a login in front of it.\n"
        )
    if until_input_ends:
        threading.Thread(target=_exit_with_stdin, daemon=True).start()
    logging.getLogger("asyncio").addFilter(_Seldom())
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        http=PatientProtocol,
        ws="none",
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=LARGEST_HEAD,
        server_header=False,
    )
    logging.getLogger("uvicorn.error").addFilter(_Seldom())
    with contextlib.suppress(KeyboardInterrupt):
        Server(config).run()


class _Seldom(logging.Filter):
    """Lets the same message pass once in ten seconds: what a client can cause must not fill the disk."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message was not logged a moment ago."""
        key = f"{record.name}:{record.lineno}:{str(record.msg)[:60]}"
        now = time.monotonic()
        if now - self._last.get(key, -10.0) < 10.0:
            return False
        self._last[key] = now
        return True


def _addresses(settings: Settings) -> str:
    """Every address at which the explorer is reached: all of this machine's when it listens on all."""
    if settings.host not in ("0.0.0.0", "::"):  # noqa: S104
        return explorer_url(settings)
    import psutil

    families = {socket.AF_INET} if settings.host == "0.0.0.0" else {socket.AF_INET, socket.AF_INET6}  # noqa: S104
    hosts = [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family in families and not entry.address.startswith(("127.", "fe80:", "::1"))
    ]
    urls = [explorer_url(dataclasses.replace(settings, host=host)) for host in hosts]
    return " and ".join([explorer_url(settings), *urls])


@contextlib.contextmanager
def explorer_process(settings: Settings) -> Iterator[tuple[str, Callable[[], None]]]:
    """Run the explorer as a child process; yields its address and a function that waits until it ends.

    Raises PortInUse, or ServerFailed when it does not start. The child ends with the body, and also when
    this process is killed.
    """
    require_free_port(settings)
    log = settings.home / "serve.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "app.cli", "serve", "--until-input-ends"]
    command += ["--host", settings.host, "--port", str(settings.port)]
    environment = {**os.environ, "CROSSDIFF_HOME": str(settings.home)}
    with log.open("w", encoding="utf-8") as output:
        # In a separate session the child does not receive Ctrl-C; this process terminates it afterwards.
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        _wait_until_it_answers(child, settings, log=str(log))
        yield explorer_url(settings), lambda: _wait_for(child, log=str(log))
    finally:
        _end(child)


def open_browser(address: str) -> None:
    """Open the page in a browser if this machine has a screen."""
    if sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        with contextlib.suppress(webbrowser.Error):
            webbrowser.open(address)


def _wait_until_it_answers(child: "subprocess.Popen[bytes]", settings: Settings, *, log: str) -> None:
    deadline = time.monotonic() + START_LIMIT
    while not explorer_responds(settings):
        if child.poll() is not None or time.monotonic() > deadline:
            raise ServerFailed(f"The explorer did not start. {log} says why; fix that and run the command again.")
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


def _exit_with_stdin() -> None:
    """Terminate at end of file on stdin, whose other end the parent holds: so a killed parent ends this process too."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
