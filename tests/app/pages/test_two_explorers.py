"""Two explorers with one database and one worker: what one accepts, refuses or stops holds for both."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from app.settings import REPOSITORY
from tests.worlds.served import served
from tests.worlds.steerable import SHARED, write_steerable_run
from tests.worlds.tiny_results import RUN

LONG = {"feature": SHARED, "prompt": "Once", "strength": 0.5, "max_tokens": 400}
GENERATIONS = f"/api/v1/runs/{RUN}/generations"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("shared")
    write_steerable_run(home)
    return home


@pytest.fixture(scope="module")
def worker(home: Path) -> Iterator[tuple[str, int]]:
    """A worker that nobody supervises: its address, and its process."""
    path = Path("/tmp") / f"crossdiff-test-{os.getpid()}-shared.sock"
    command = [sys.executable, "-m", "app.worker.server", "--home", str(home), "--socket", str(path)]
    worker = subprocess.Popen(command, cwd=REPOSITORY)
    while not path.exists():
        time.sleep(0.1)
    yield f"unix:{path}", worker.pid
    worker.kill()
    worker.wait()
    path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def explorers(home: Path, worker: tuple[str, int]) -> Iterator[list[httpx.Client]]:
    """A browser at each of two explorers."""
    with served(home, worker_url=worker[0]) as (one, _), served(home, worker_url=worker[0]) as (other, _):
        browsers = [httpx.Client(base_url=address, timeout=240) for address in (one, other)]
        read = browsers[0].post(GENERATIONS, json={**LONG, "max_tokens": 1}).json()
        finished(browsers[0], read["id"])  # the models are loaded
        yield browsers
        for browser in browsers:
            browser.close()


def finished(browser: httpx.Client, generation: str) -> dict:
    """The generation, once nothing more comes."""
    while (read := browser.get(f"/api/v1/generations/{generation}").json())["state"] in ("waiting", "running"):
        time.sleep(0.05)
    return read


def test_together_they_accept_what_the_worker_has_room_for_and_refuse_the_rest_at_once(explorers: list[httpx.Client]):
    def ask(number: int) -> httpx.Response:
        return explorers[number % 2].post(GENERATIONS, json={**LONG, "seed": number})

    with ThreadPoolExecutor(18) as threads:
        answers = list(threads.map(ask, range(18)))
    accepted = [answer.json()["id"] for answer in answers if answer.status_code == 202]
    for browser in explorers:
        for generation in reversed(accepted):
            browser.delete(f"/api/v1/generations/{generation}")
    refused = [answer for answer in answers if answer.status_code != 202]
    assert {(one.status_code, one.headers["retry-after"]) for one in refused} == {(503, "10")}
    assert len(accepted) in (9, 10), "one runs, eight wait; the first may be done before the last asks"
    states = {finished(explorers[0], generation)["state"] for generation in accepted}
    assert states <= {"stopped", "done"}, "what was accepted never fails"
    page = explorers[0].get(f"/runs/{RUN}/steer", params={"feature": SHARED}).text
    assert "failed" not in page, "and what was refused leaves nothing behind"


@pytest.mark.parametrize("how", ["api", "page"])
def test_stop_on_the_other_explorer_stops_it_running_or_waiting(explorers: list[httpx.Client], how: str):
    asked = [explorers[0].post(GENERATIONS, json={**LONG, "rerun": True}).json()["id"] for _ in range(2)]
    while explorers[1].get(f"/api/v1/generations/{asked[0]}").json()["state"] != "running":
        time.sleep(0.05)
    for generation in reversed(asked):
        stopped = (
            explorers[1].delete(f"/api/v1/generations/{generation}")
            if how == "api"
            else explorers[1].post(f"/generations/{generation}/stop")
        )
        assert stopped.status_code == (202 if how == "api" else 303)
    assert [finished(explorers[0], generation)["state"] for generation in asked] == ["stopped", "stopped"]


def test_what_has_finished_may_be_stopped_without_harm(explorers: list[httpx.Client]):
    generation = explorers[0].post(GENERATIONS, json={**LONG, "max_tokens": 1, "seed": 77}).json()["id"]
    assert finished(explorers[0], generation)["state"] == "done"
    assert explorers[1].delete(f"/api/v1/generations/{generation}").status_code == 202
    assert finished(explorers[1], generation)["state"] == "done"


def test_a_generation_of_another_worker_cannot_be_stopped_from_here_and_that_is_said(
    explorers: list[httpx.Client], home: Path
):
    generation = explorers[0].post(GENERATIONS, json={**LONG, "seed": 78}).json()["id"]
    try:
        with served(home) as (address, _), httpx.Client(base_url=address, timeout=60) as stranger:
            answer = stranger.delete(f"/api/v1/generations/{generation}")
            assert answer.status_code == 409
            assert "Another explorer runs this generation" in answer.json()["error"]["message"]
    finally:
        explorers[0].delete(f"/api/v1/generations/{generation}")


@pytest.mark.slow
def test_pages_and_labels_go_on_while_the_worker_is_frozen(explorers: list[httpx.Client], worker: tuple[str, int]):
    invalid = {"feature": SHARED, "prompt": "", "strength": 1}
    stop = threading.Event()
    os.kill(worker[1], signal.SIGSTOP)
    try:
        explorers[0].get(f"/runs/{RUN}/steer")  # the first finds out

        def send_invalid_forms() -> set[int]:
            codes = set()
            with httpx.Client(base_url=explorers[0].base_url, timeout=60) as browser:
                while not stop.is_set():
                    codes.add(browser.post(f"/runs/{RUN}/generations", data=invalid).status_code)
            return codes

        with ThreadPoolExecutor(10) as threads:
            forms = [threads.submit(send_invalid_forms) for _ in range(10)]
            times = []
            for number in range(8):
                began = time.monotonic()
                assert explorers[0].get(f"/runs/{RUN}/steer").status_code == 200
                path = f"/api/v1/runs/{RUN}/features/{SHARED}/labels"
                body = {"author": f"Ada {number}", "text": "a label"}
                assert explorers[0].post(path, json=body).status_code in (200, 201)
                times.append(time.monotonic() - began)
            stop.set()
        assert {code for form in forms for code in form.result()} == {422}
        assert max(times) < 5, times
    finally:
        stop.set()
        os.kill(worker[1], signal.SIGCONT)
