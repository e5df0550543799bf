"""Steering as JSON, through the real explorer and a real worker."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.worlds.served import served
from tests.worlds.steerable import ONLY_SMOLLM2, SHARED, write_steerable_run
from tests.worlds.tiny_results import RUN

GENERATIONS = f"/api/v1/runs/{RUN}/generations"
ASKED = {"feature": SHARED, "prompt": "Once", "strength": 4, "max_tokens": 6}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Another program at an explorer whose models can speak."""
    home: Path = tmp_path_factory.mktemp("served")
    write_steerable_run(home)
    with served(home) as (address, _), httpx.Client(base_url=address, timeout=240) as client:
        yield client


def finished(program: httpx.Client, generation: str) -> dict:
    """The generation, once nothing more comes."""
    while (read := program.get(f"/api/v1/generations/{generation}").json())["state"] in ("waiting", "running"):
        time.sleep(0.05)
    return read


def test_a_generation_is_asked_for_followed_and_read(program: httpx.Client):
    asked = program.post(GENERATIONS, json=ASKED)
    assert asked.status_code == 202
    stream = program.get(f"/api/v1/generations/{asked.json()['id']}/events").text
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")]
    assert events[-1] == {}
    read = finished(program, asked.json()["id"])
    assert read["state"] == "done", read
    assert events[-2] == read
    assert [(lane["source"], lane["strength"]) for lane in read["lanes"]] == [
        ("smollm2", 0.0),
        ("smollm2", 4.0),
        ("gemma3", 0.0),
        ("gemma3", 4.0),
    ]
    assert program.post(GENERATIONS, json=ASKED).json() == {**read, "from_storage": True}
    assert program.post(GENERATIONS, json={**ASKED, "rerun": True}).json()["id"] != read["id"]


def test_sources_that_are_left_alone_are_named(program: httpx.Client):
    read = finished(program, program.post(GENERATIONS, json={**ASKED, "feature": ONLY_SMOLLM2}).json()["id"])
    assert [lane["writes"] for lane in read["lanes"]] == [True, True, False, False]
    assert read["lanes"][2]["text"] == read["lanes"][3]["text"]


def test_a_generation_can_be_stopped(program: httpx.Client):
    generation = program.post(GENERATIONS, json={**ASKED, "max_tokens": 400, "seed": 9}).json()["id"]
    assert program.delete(f"/api/v1/generations/{generation}").status_code == 202
    assert finished(program, generation)["state"] == "stopped"


def test_models_say_how_far_they_are(program: httpx.Client):
    finished(program, program.post(GENERATIONS, json=ASKED).json()["id"])
    read = program.get(f"/api/v1/runs/{RUN}/steer").json()
    assert [(one["source"], one["state"]) for one in read["sources"]] == [("smollm2", "ready"), ("gemma3", "ready")]


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"strength": 1e9}, "strength"),
        ({"prompt": ""}, "prompt"),
        ({"mode": "ablate"}, "'ablate' is not built yet"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_what_makes_no_sense_is_refused(program: httpx.Client, change: dict, fact: str):
    answer = program.post(GENERATIONS, json={**ASKED, **change})
    assert answer.status_code == 422
    assert fact in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "fact"),
    [
        ("{", "The body is no JSON: "),
        ('{"feature": 3, "prompt": "a", "strength": }', "The body is no JSON: Expecting value at character 42"),
        ("[]", "body: "),
        ('{"feature": 3}', "prompt: Field required"),
        ('{"feature": 3, "prompt": "a", "temperature": -1}', "temperature: Input should be greater than or equal to 0"),
        ('{"feature": 3, "prompt": " "}', "prompt: type a prompt for the models to go on from"),
    ],
)
def test_a_body_that_is_refused_is_not_called_an_address(program: httpx.Client, body: str, fact: str):
    answer = program.post(GENERATIONS, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["message"].startswith(fact)
    assert (error["title"], error["remedy"]) == ("Invalid request", "Correct what is named here, and send it again.")
    address = program.get(f"/api/v1/runs/{RUN}/features", params={"page": "x"}).json()["error"]
    assert "address" in address["remedy"]


@pytest.mark.parametrize(
    "extreme",
    [
        {"temperature": 1e-40},
        {"temperature": 5e-324, "top_p": 5e-324},
        {"temperature": 2, "top_p": 1e-300},
        {"strength": 1e-320},
        {"strength": 100},
        {"strength": -100},
    ],
)
def test_extremes_within_the_limits_give_text_or_a_sentence(program: httpx.Client, extreme: dict[str, float]):
    read = finished(program, program.post(GENERATIONS, json={**ASKED, **extreme}).json()["id"])
    assert read["state"] == "done" or "nearer to zero" in read["reason"]


def test_nothing_there_is_404(program: httpx.Client):
    assert program.get("/api/v1/generations/nothing").status_code == 404
    assert program.delete("/api/v1/generations/nothing").status_code == 404
    assert program.post(GENERATIONS, json={**ASKED, "feature": 9999}).status_code == 404
