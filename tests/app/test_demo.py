"""`crossdiff demo` on two tiny models: one command starts a run and the explorer beside it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from tests.worlds.tiny_diff import tiny_diff
from trainer.recipe.recipe import load_recipe
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress

LIMIT = 300
"""Seconds until something has to have happened; machines that run tests are busy."""

pytestmark = pytest.mark.slow


def test_demo_shows_its_run_ends_with_ctrl_c_and_opens_at_once_the_second_time(tmp_path: Path, own_home: Path):
    recipe = tiny_diff(tmp_path / "world")

    with demo(recipe) as (first, port):
        address = line_with(first.stdout, "The comparison is at ").split()[4]
        listed = json.loads(fetch(f"http://127.0.0.1:{port}/api/v1/runs"))
        page = fetch(address)
        interrupt(first)

    assert first.returncode == 0
    assert not listens(port)
    assert [run["status"] for run in listed["runs"]] == ["finished"]
    assert b"left" in page and b"right" in page
    (results,) = own_home.glob("runs/*/results-*.duckdb")
    published = results.stat().st_mtime_ns

    with demo(recipe) as (second, port):
        line_with(second.stdout, "The comparison is at ")
        interrupt(second)

    assert second.returncode == 0
    assert results.stat().st_mtime_ns == published


def test_ctrl_c_while_it_runs_says_how_to_go_on_and_leaves_no_server(tmp_path: Path):
    recipe = tiny_diff(tmp_path / "world")
    with demo(recipe) as (process, port):
        line_with(process.stdout, "The explorer is at ")
        interrupt(process)
        assert process.stderr is not None
        said = process.stderr.read()

    assert process.returncode == 130
    assert b"Stopped. The same command goes on from here." in said
    assert b"Traceback" not in said
    assert not listens(port)


@pytest.mark.parametrize("before", ["nothing", "a stopped run"])
def test_the_first_page_already_shows_the_run(tmp_path: Path, before: str):
    recipe = tiny_diff(tmp_path / "world")
    if before == "a stopped run":
        folder = RunFolder.for_recipe(load_recipe(recipe))
        with pytest.raises(KeyboardInterrupt), Progress(folder, "tiny-diff").running():
            raise KeyboardInterrupt

    with demo(recipe) as (_, port):
        deadline = time.monotonic() + LIMIT
        while not listens(port) and time.monotonic() < deadline:
            time.sleep(0.01)
        listed = json.loads(fetch(f"http://127.0.0.1:{port}/api/v1/runs"))

    assert [run["status"] for run in listed["runs"]] == ["running"]


def test_a_killed_demo_leaves_no_server_behind(tmp_path: Path):
    with demo(tiny_diff(tmp_path / "world")) as (process, port):
        line_with(process.stdout, "The explorer is at ")
        process.kill()
        process.wait()

        deadline = time.monotonic() + LIMIT
        while listens(port) and time.monotonic() < deadline:
            time.sleep(0.1)

        assert not listens(port)


@contextlib.contextmanager
def demo(recipe: Path) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """`crossdiff demo` in a process of its own, and the port of its explorer."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "app.cli", "demo", "--recipe", str(recipe), "--port", str(port), "--no-browser"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    try:
        yield process, port
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def line_with(stream: IO[bytes] | None, beginning: str) -> str:
    """The first line that begins so; an error when the program ends without one."""
    assert stream is not None
    for line in stream:
        if line.decode().startswith(beginning):
            return line.decode()
    raise AssertionError(f"the program ended without a line that begins {beginning!r}")


def interrupt(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGINT)
    process.wait(timeout=LIMIT)


def fetch(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=LIMIT) as answer:
        return bytes(answer.read())


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
