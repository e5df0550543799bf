"""Reports what a run is doing on the terminal and in `progress.json` for the home page."""

import contextlib
import datetime
import math
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from trainer.errors import CrossdiffError, DiskFull
from trainer.run.folder import RunFolder, read_json, write_json
from trainer.run.peak_memory import peak_gigabytes, reset_peak, return_large_blocks
from trainer.run.stages import STAGES

LINE_INTERVAL = 10.0
"""Seconds between plain lines when standard error is not a terminal."""
FILE_INTERVAL = 0.5
"""Seconds between writes of progress.json."""
FRUGAL = ("evaluate", "analyse")
"""Stages that free large blocks for good; the others take the same ones again and again."""
HEARTBEAT = 5.0
"""Seconds after which progress.json is written without any news: it shows that the process lives."""


class Progress:
    """Live state of one run. One stage is active at a time.

    The file holds: run, name, status (`running`, `finished`, `failed`, `stopped`), stage,
    stages [{stage, state (`waiting`, `running`, `done`, `skipped`), seconds}], done, total, unit,
    rate (per second), seconds_left, measures {name: number}, message, error, pid and host of the process,
    updated_at (UTC).
    """

    def __init__(self, folder: RunFolder, name: str) -> None:
        self._folder = folder
        self._state: dict[str, Any] = {
            "run": folder.run_id,
            "name": name,
            "status": "running",
            "stage": None,
            "stages": [{"stage": stage, "state": "waiting", "seconds": None} for stage in STAGES],
            "done": 0,
            "total": None,
            "unit": "",
            "rate": None,
            "seconds_left": None,
            "measures": {},
            "message": "",
            "error": None,
            "pid": os.getpid(),
            "host": platform.node(),
        }
        self._bar: tqdm[Any] | None = None
        self._initial = 0
        self._task_started = self._written = self._printed = time.monotonic()
        self._writing = threading.Lock()

    @contextlib.contextmanager
    def running(self) -> Iterator["Progress"]:
        """Context of a whole run; sets the final status to `finished`, `failed` or `stopped`."""
        self._write()
        try:
            with self._heartbeat():
                yield self
        except KeyboardInterrupt:
            self._end("stopped", "Stopped. The same command goes on from here.")
            raise
        except CrossdiffError as error:
            self._end("failed", str(error))
            raise
        except BaseException as error:
            self._end("failed", f"{type(error).__name__}: {error}")
            raise
        self._end("finished", None)

    @contextlib.contextmanager
    def _heartbeat(self) -> Iterator[None]:
        """Write the file every now and then, whatever the process is busy with."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(HEARTBEAT):
                if time.monotonic() - self._written >= HEARTBEAT:
                    with contextlib.suppress(OSError, DiskFull):
                        self._write()

        thread = threading.Thread(target=beat, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator["Progress"]:
        """Context of one stage of a run; logs its duration and its peak memory."""
        entry = self._entry(name)
        entry["state"], self._state["stage"] = "running", name
        started = time.monotonic()
        return_large_blocks(at_once=name in FRUGAL)
        reset_peak()
        self.log(f"{name} began")
        yield self
        entry["state"], entry["seconds"] = "done", round(time.monotonic() - started, 1)
        self.notify(f"{name}: {entry['seconds']:,.0f} s, peak memory {peak_gigabytes():.1f} GB")
        self._write()

    def skip(self, name: str) -> None:
        """Mark a stage as skipped because it is up to date."""
        self._entry(name)["state"] = "skipped"
        self._write()

    def announce(self, message: str) -> None:
        """Say what the process is about to do, if it cannot be counted."""
        self._state.update(message=message, done=0, total=None, unit="", rate=None, seconds_left=None, measures={})
        self._write()

    @contextlib.contextmanager
    def task(self, message: str, *, total: int | None, unit: str = "rows", initial: int = 0) -> Iterator["Progress"]:
        """Context of a counted task; call `advance` inside. `initial` units done earlier do not enter the rate."""
        self._state.update(
            message=message, done=initial, total=total, unit=unit, rate=None, seconds_left=None, measures={}
        )
        self._task_started = self._printed = time.monotonic()
        self._initial = initial
        self._write()
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=initial, unit=f" {unit}", desc=message, delay=1.0, dynamic_ncols=True)
        try:
            yield self
        finally:
            if self._bar is not None:
                self._bar.close()
                self._bar = None
            self._write()

    def advance(self, done: int, **measures: float) -> None:
        """Add `done` units; `measures` are the latest values to show, those that are finite."""
        state = self._state
        state["done"] += done
        finite = {name: float(value) for name, value in measures.items() if math.isfinite(value)}
        state["measures"] = {name: value for name, value in state["measures"].items() if name not in measures} | finite
        now = time.monotonic()
        rate = (state["done"] - self._initial) / max(now - self._task_started, 1e-6)
        # Without progress there is no rate to estimate the remaining time from.
        if rate > 0:
            state["rate"] = rate
            state["seconds_left"] = max(state["total"] - state["done"], 0) / rate if state["total"] else None
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in measures.items()}, refresh=False)
            self._bar.update(done)
        elif now - self._printed > LINE_INTERVAL:
            self._print_line()
        if now - self._written > FILE_INTERVAL:
            self._write()

    def notify(self, line: str) -> None:
        """Print a line on the terminal and append it to the run's log."""
        tqdm.write(line, file=sys.stderr)
        self.log(line)

    def log(self, line: str) -> None:
        """Append a line with a timestamp to the run's log."""
        self._folder.path.mkdir(parents=True, exist_ok=True)
        with self._folder.log.open("a", encoding="utf-8") as log:
            log.write(f"{_now()} {line}\n")

    def _entry(self, name: str) -> dict[str, Any]:
        return next(entry for entry in self._state["stages"] if entry["stage"] == name)

    def _print_line(self) -> None:
        state = self._state
        self._printed = time.monotonic()
        share = f" of {state['total']:,}" if state["total"] else ""
        left = f", {state['seconds_left']:.0f} s left" if state["seconds_left"] is not None else ""
        measures = "".join(f", {name} {value:.4g}" for name, value in state["measures"].items())
        rate = f"{state['rate'] or 0:,.0f}/s"
        line = f"{state['message']}: {state['done']:,}{share} {state['unit']} ({rate}{left}{measures})"
        print(line, file=sys.stderr, flush=True)

    def _end(self, status: str, error: str | None) -> None:
        self._state.update(status=status, error=error, seconds_left=None)
        for entry in self._state["stages"]:
            if entry["state"] == "running":
                entry["state"] = "waiting"
        self.log(f"{status}: {error}" if error else status)
        self._write()

    def _write(self) -> None:
        with self._writing:
            self._written = time.monotonic()
            self._state["updated_at"] = _now()
            write_json(self._folder.progress, dict(self._state), durable=False)


def read_progress(folder: RunFolder) -> dict[str, Any] | None:
    """The last state written, or None if the run never started."""
    state = read_json(folder.progress)
    return state if isinstance(state, dict) else None


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
