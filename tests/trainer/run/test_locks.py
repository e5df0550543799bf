"""One process at a time works on a run or writes a store, and a lock ends with its process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.worlds.tiny_diff import tiny_diff
from trainer.recipe.recipe import load_recipe
from trainer.run.folder import RunFolder
from trainer.run.locks import run_lock, store_lock
from trainer.run.progress import read_progress

HOLD = """
import sys, time
from pathlib import Path
from trainer.run.folder import RunFolder
from trainer.run.locks import run_lock, store_lock
kind, path = sys.argv[1], Path(sys.argv[2])
held = run_lock(RunFolder(path), print) if kind == "run" else store_lock(path, print, writing=kind == "writer")
with held:
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(kind: str, path: Path) -> subprocess.Popen[str]:
    """A process that holds a lock until it is killed."""
    command = [sys.executable, "-c", HOLD, kind, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize(
    ("first", "second", "waits"),
    [
        ("run", "run", True),
        ("writer", "writer", True),
        ("writer", "reader", True),
        ("reader", "writer", True),
        ("reader", "reader", False),
    ],
)
def test_who_cannot_share_waits_says_so_and_goes_on_when_the_other_is_killed(tmp_path, first, second, waits):
    process, said = holder(first, tmp_path / "thing"), list[str]()

    def notify(line: str) -> None:
        said.append(line)
        process.send_signal(signal.SIGKILL)

    held = run_lock(RunFolder(tmp_path / "thing"), notify) if second == "run" else None
    with held or store_lock(tmp_path / "thing", notify, writing=second == "writer"):
        assert bool(said) == waits
    assert all("waiting until it ends" in line for line in said)
    process.kill()
    process.communicate()


def test_the_process_that_works_on_a_run_is_named(tmp_path):
    process = holder("run", tmp_path / "run-1")
    (tmp_path / "run-1" / "progress.json").write_text('{"pid": 4711, "host": "there"}')
    said: list[str] = []

    def notify(line: str) -> None:
        said.append(line)
        process.kill()

    with run_lock(RunFolder(tmp_path / "run-1"), notify):
        assert said == ["run-1: process 4711 on there works on this run; waiting until it ends (Ctrl-C gives up)."]
    process.communicate()


def crossdiff(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "app.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_two_commands_on_one_recipe_one_waits_and_nothing_is_done_twice(tmp_path, own_home):
    recipe = tiny_diff(tmp_path / "world")
    both = [crossdiff("run", str(recipe)) for _ in range(2)]
    said = [process.communicate(timeout=240) for process in both]

    assert [process.returncode for process in both] == [0, 0]
    assert said[0][0] == said[1][0], "both print the run's folder"
    log = next((own_home / "runs").glob("*/log.txt")).read_text()
    for stage in ("harvest", "train", "evaluate", "analyse"):
        assert log.count(f"{stage} began") == 1, stage
    assert sum("works on this run; waiting" in errors for _, errors in said) <= 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_run_cleanly_and_the_same_command_goes_on(tmp_path, number):
    recipe = tiny_diff(tmp_path / "world", training={"batch": 128, "epochs": 60, "checkpoint_every": 10})
    folder = RunFolder.for_recipe(load_recipe(recipe))
    process = crossdiff("run", str(recipe), "--stage", "harvest", "--stage", "train")
    until = time.monotonic() + 120
    while not any(folder.checkpoints.glob("step-*")) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 130 and "Stopped. The same command goes on from here." in errors
    state = read_progress(folder)
    assert (state["status"], state["stage"]) == ("stopped", "train")

    process = crossdiff("run", str(recipe), "--stage", "train", "--set", "training.epochs=60")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0 and "resuming from step" in errors


def test_the_progress_file_stays_fresh_while_a_process_is_busy_with_something_uncounted(tmp_path, monkeypatch):
    from trainer.run import progress

    monkeypatch.setattr(progress, "HEARTBEAT", 0.05)
    folder = RunFolder(tmp_path)
    with progress.Progress(folder, "tiny").running() as running:
        running.announce("loading")
        first = folder.progress.stat().st_mtime_ns
        until = time.monotonic() + 10
        while folder.progress.stat().st_mtime_ns == first and time.monotonic() < until:
            time.sleep(0.02)
        assert folder.progress.stat().st_mtime_ns > first
        assert read_progress(folder)["message"] == "loading" and read_progress(folder)["pid"] == os.getpid()
    assert read_progress(folder)["status"] == "finished"
