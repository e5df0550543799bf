"""Labels as JSON: the same store and the same refusals as on pages."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.worlds.tiny_results import RUN, write_tiny_run

HERE = f"/api/v1/runs/{RUN}/features/3/labels"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("labelled")
    write_tiny_run(home, features=24)
    return home


@pytest.fixture
def program(home: Path, tmp_path: Path) -> Iterator[TestClient]:
    """Another program at an explorer with one run."""
    settings = Settings(home=home, database_url=f"sqlite:///{tmp_path / 'labels.db'}")
    with TestClient(create_app(settings)) as client:
        yield client


def test_a_label_is_saved_read_withdrawn_and_restored(program: TestClient):
    saved = program.post(HERE, json={"author": "Ada", "text": "German", "note": "n"})
    assert saved.status_code == 201
    assert (saved.json()["revision"], saved.json()["text"]) == (1, "German")
    assert program.post(HERE, json={"author": "Ada", "action": "withdraw", "revision": 1}).json()["withdrawn"] is True
    assert program.get(HERE).json()["labels"] == []
    restored = program.post(HERE, json={"author": "Ada", "action": "restore", "restore": 1, "revision": 2}).json()
    assert (restored["revision"], restored["restores"], restored["text"]) == (3, 1, "German")
    read = program.get(HERE).json()
    assert [label["text"] for label in read["labels"]] == ["German"]
    assert [label["revision"] for label in read["history"]] == [3, 2, 1]


def test_a_conflict_comes_with_what_was_saved_meanwhile(program: TestClient):
    program.post(HERE, json={"author": "Ada", "text": "German"})
    answer = program.post(HERE, json={"author": "Ada", "text": "Dutch"})
    assert answer.status_code == 409
    assert answer.json()["latest"]["text"] == "German"
    assert answer.json()["error"].keys() == {"status", "title", "message", "remedy"}, "as every error"
    assert "nothing was overwritten" in answer.json()["error"]["message"]
    assert [label["text"] for label in program.get(HERE).json()["history"]] == ["German"]

    again = program.post(HERE, json={"author": "Ada", "text": "Dutch", "revision": answer.json()["latest"]["revision"]})
    assert again.status_code == 201


def test_a_conflict_where_nothing_was_ever_saved_has_no_latest(program: TestClient):
    answer = program.post(HERE, json={"author": "Ada", "text": "Dutch", "revision": 4})
    assert (answer.status_code, answer.json()["latest"]) == (409, None)


def test_the_description_of_the_interface_has_the_conflict_and_its_shape(program: TestClient):
    description = program.get("/api/openapi.json").json()
    answers = description["paths"]["/api/v1/runs/{run}/features/{feature}/labels"]["post"]["responses"]
    assert answers["409"]["content"]["application/json"]["schema"]["$ref"].endswith("/Conflict")
    assert description["components"]["schemas"]["Conflict"]["properties"].keys() == {"error", "latest"}
    page = program.get("/api/docs").text
    assert "<code>409</code> The author&#39;s newest revision is not the one given as <code>revision</code>" in page


@pytest.mark.parametrize(
    ("body", "fact"),
    [
        ({"author": "anonymous", "text": "x"}, "needs an author"),
        ({"author": "Ada", "text": ""}, "empty"),
        ({"author": "Ada", "text": "a\u0000b"}, "U+0000"),
        ({"author": "Ada", "text": "x", "revision": -1}, "revision"),
        ({"text": "x"}, "author"),
    ],
)
def test_what_cannot_be_saved_is_refused_with_its_reason(program: TestClient, body, fact):
    answer = program.post(HERE, json=body)
    assert answer.status_code == 422
    assert fact in answer.json()["error"]["message"]


def test_a_labels_database_that_breaks_says_so_and_leaves_the_rest_alone(program: TestClient, tmp_path: Path):
    program.app.state.labels.dispose()  # type: ignore[attr-defined]
    for file in tmp_path.glob("labels.db*"):
        file.unlink()
    answer = program.post(HERE, json={"author": "Ada", "text": "German"})
    assert answer.status_code == 503
    assert "The labels database cannot be used" in answer.json()["error"]["message"]
    assert program.get(f"/runs/{RUN}/features/3").status_code == 200
    assert program.get(f"/runs/{RUN}/features").status_code == 200
