"""Rates and remaining times of tasks, in progress.json and on the terminal."""

import pytest

from trainer.run import progress as progress_module
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress, read_progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def reported(folder):
    state = read_progress(folder)
    return state["done"], state["rate"], state["seconds_left"]


def test_without_progress_no_remaining_time_is_estimated(tmp_path, clock):
    folder = RunFolder(tmp_path)
    with Progress(folder, "tiny").task("harvest", total=1000) as task:
        assert reported(folder) == (0, None, None)
        clock[0] += 20
        task.advance(0)
        assert reported(folder) == (0, None, None)
        clock[0] += 20
        task.advance(400)
        assert reported(folder) == (400, 10.0, 60.0)


def test_work_of_an_earlier_run_counts_as_done_but_not_in_the_rate(tmp_path, clock, capsys):
    folder = RunFolder(tmp_path)
    with Progress(folder, "tiny").task("train", total=1000, unit="steps", initial=800) as task:
        assert reported(folder) == (800, None, None)
        clock[0] += 20
        task.advance(100)
        assert reported(folder) == (900, 5.0, 20.0)
    assert capsys.readouterr().err == "train: 900 of 1,000 steps (5/s, 20 s left)\n"
