"""Starts the local inference worker when it is first needed, and again whenever it ends."""

import contextlib
import logging
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from app.inference.client import Address, WorkerUnreachable

log = logging.getLogger("crossdiff.supervisor")

SOCKET_PATH_LIMIT = 100
"""Bytes; Unix sockets allow 107 on Linux and 103 on macOS."""
START_TIMEOUT = 60.0
"""Seconds a worker may take to answer for the first time."""
RESTART_DELAYS = (0.2, 1.0, 5.0, 15.0)
"""Seconds before a worker that keeps ending is started again, longer each time."""
STABLE_AFTER = 60.0
"""Seconds after which a worker counts as stable, and the next delay is short again."""
ASKED_EVERY = 2.0
"""Seconds between two questions whether the worker answers."""
FROZEN_AFTER = 20.0
"""Seconds after which a worker that neither answers, nor works, nor waits for the machine is started again."""
FOLDER = "crossdiff-worker-"
"""How the folders of sockets begin."""
LOCK = "explorer.lock"
"""File in the folder that its explorer holds locked, however that ends."""


class Supervisor:
    """One local worker on a private socket; ends with this process, however that ends."""

    patience = 30.0

    def __init__(self, home: Path) -> None:
        self._home = home
        self._folder: Path | None = None
        self._held: FileLock | None = None
        self._worker: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def address(self) -> Address:
        """Where the worker answers; starts it if it was never started. Raises WorkerUnreachable when it cannot."""
        with self._lock:
            if self._folder is None and not self._stopping.is_set():
                self._folder, self._held = _private_folder()
                self._start()
                threading.Thread(target=self._watch, name="worker supervisor", daemon=True).start()
        deadline = time.monotonic() + START_TIMEOUT
        while (known := self.known()) is None:
            if self._stopping.is_set() or time.monotonic() > deadline:
                fact = "The inference worker does not start."
                raise WorkerUnreachable(fact, remedy="The log of `crossdiff serve` says why; try again.")
            time.sleep(0.02)
        return known

    def known(self) -> Address | None:
        """Where the worker answers; None while it does not run."""
        if self.process() is None or not self._socket.exists():
            return None
        return Address(socket=str(self._socket))

    def process(self) -> int | None:
        """Process id of the worker that runs now."""
        return self._worker.pid if self._worker is not None and self._worker.poll() is None else None

    def stop(self) -> None:
        """End the worker and remove its socket."""
        self._stopping.set()
        with self._lock:
            if self._worker is not None:
                _end(self._worker)
            if self._held is not None:
                self._held.release()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _socket(self) -> Path:
        assert self._folder is not None, "the worker was never started"
        return self._folder / "worker.sock"

    def _start(self) -> None:
        command = [sys.executable, "-m", "app.worker.server", "--home", str(self._home)]
        command += ["--socket", str(self._socket), "--until-input-ends"]
        # The worker ends when the other end of this pipe is gone. A session of its own keeps Ctrl-C from it.
        self._worker = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=_root(), start_new_session=True)

    def _watch(self) -> None:
        """Start the worker again whenever it ends or does not answer any more."""
        failures = 0
        while not self._stopping.is_set():
            worker, began = self._worker, time.monotonic()
            assert worker is not None, "the first worker is started before it is watched"
            code = self._outlived(worker)
            self._socket.unlink(missing_ok=True)
            if self._stopping.is_set():
                return
            failures = 0 if time.monotonic() - began > STABLE_AFTER else failures + 1
            pause = RESTART_DELAYS[min(failures, len(RESTART_DELAYS)) - 1] if failures else 0.0
            log.error("The inference worker ended with code %s; it is started again in %.1f s.", code, pause)
            if self._stopping.wait(pause):
                return
            with self._lock:
                if not self._stopping.is_set():
                    _close_input(worker)
                    self._start()

    def _outlived(self, worker: "subprocess.Popen[bytes]") -> int:
        """The worker's exit code, once it has ended; it is killed when it neither answers nor works for too long."""
        alive, worked = time.monotonic(), 0.0
        while True:
            try:
                return worker.wait(ASKED_EVERY)
            except subprocess.TimeoutExpired:
                # While libraries and models are loaded, it may not come to answer for long.
                before, worked = worked, _seconds_worked(worker.pid)
                works = worked - before > 0.05 * ASKED_EVERY or _waits_for_machine(worker.pid)
                if works or _answers(self._socket):
                    alive = time.monotonic()
                elif time.monotonic() - alive > FROZEN_AFTER:
                    log.error("The inference worker has not answered for %.0f s and is ended.", FROZEN_AFTER)
                    worker.kill()


def _seconds_worked(process: int) -> float:
    """Processor time that a process has taken."""
    try:
        times = psutil.Process(process).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def _waits_for_machine(process: int) -> bool:
    """Whether a process would go on if the processor or the disk came to serve it, as on a crowded machine."""
    try:
        return psutil.Process(process).status() in (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP)
    except psutil.Error:
        return False


def _answers(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.settimeout(ASKED_EVERY)
            asking.connect(str(path))
            asking.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            return b" 200 " in asking.recv(64)
    except OSError:
        return False


def _private_folder() -> tuple[Path, FileLock]:
    """A new folder that only this user may enter, with a path short enough for a socket, and the lock on it.

    Folders that an explorer left behind when it was killed are removed.
    """
    base = Path(tempfile.gettempdir())
    if len(str(base / f"{FOLDER}12345678" / "worker.sock").encode()) > SOCKET_PATH_LIMIT:
        base = Path("/tmp")  # noqa: S108 - made and locked below
    _remove_abandoned(base)
    folder = Path(tempfile.mkdtemp(prefix=FOLDER, dir=base))
    held = FileLock(folder / LOCK, thread_local=False)
    held.acquire()
    return folder, held


def _remove_abandoned(base: Path) -> None:
    """Remove this user's folders of sockets that no explorer holds any more."""
    for lock in base.glob(f"{FOLDER}*/{LOCK}"):
        with contextlib.suppress(OSError, Timeout), FileLock(lock, blocking=False):
            shutil.rmtree(lock.parent, ignore_errors=True)


def _root() -> Path:
    """Where `app` is importable from."""
    return Path(__file__).resolve().parents[2]


def _end(worker: "subprocess.Popen[bytes]") -> None:
    worker.terminate()
    try:
        worker.wait(5)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
    _close_input(worker)


def _close_input(worker: "subprocess.Popen[bytes]") -> None:
    if worker.stdin is not None:
        worker.stdin.close()
