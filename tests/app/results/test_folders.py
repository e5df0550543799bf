"""Progress of running and ended runs, as read from their folders."""

import json
import platform
import subprocess
import sys
from pathlib import Path

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
    progress = said_by(tmp_path, pid=dead, host=platform.node())

    assert progress.status == "stopped"
    assert progress.error == "The process that ran it is gone. The same command goes on from here."


def test_a_process_in_another_container_is_taken_at_its_word(tmp_path: Path, dead: int):
    assert said_by(tmp_path, pid=dead, host="another-machine").status == "running"


def said_by(folder: Path, **process: object):
    """Progress of a run that says it is running, in a process of the caller's choice."""
    write_progress(folder, status="running", stage="train")
    path = folder / "progress.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | process))
    progress = read_progress(folder)
    assert progress is not None
    return progress
