"""Progress of running and ended runs, as read from their folders."""

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from app.results.folders import read_progress
from tests.worlds.tiny_results import write_progress


@pytest.fixture
def dead() -> int:
    """Id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_run_whose_process_is_gone_has_stopped(tmp_path: Path, dead: int):
    progress = progress_of(tmp_path, pid=dead, host=platform.node())

    assert progress.status == "stopped"
    assert progress.error == "The process that ran it is gone. The same command goes on from here."


def test_a_process_in_another_container_counts_as_alive(tmp_path: Path, dead: int):
    assert progress_of(tmp_path, pid=dead, host="another-machine").status == "running"


@pytest.mark.parametrize("silent", [63.0, 86_400.0, -7_200.0])
def test_a_process_that_lives_here_is_running_however_long_it_says_nothing(tmp_path: Path, silent: float):
    """Also when the clock was set back meanwhile: the last word is then later than now."""
    began = datetime.datetime.fromtimestamp(psutil.Process().create_time(), datetime.UTC)
    folder_of(tmp_path, pid=os.getpid(), host=platform.node(), updated_at=began.isoformat())

    progress = read_progress(tmp_path, now=began + datetime.timedelta(seconds=silent))

    assert progress is not None
    assert progress.status == "running"


def progress_of(folder: Path, **process: object):
    """Progress of a run marked as running, with the given `pid` and `host`."""
    folder_of(folder, **process)
    progress = read_progress(folder)
    assert progress is not None
    return progress


def folder_of(folder: Path, **fields: object) -> None:
    """The folder of a run marked as running, with these fields in its progress."""
    write_progress(folder, status="running", stage="train")
    path = folder / "progress.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
