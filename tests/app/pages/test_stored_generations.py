"""A stored generation says whose feature it was steered with, as long as the results still have that feature."""

import html
import re
import shutil
from pathlib import Path

from starlette.testclient import TestClient

from app.database.engine import transaction
from app.generations.store import new_generation, save_generation
from app.inference.messages import Lane, Parameters
from app.main import create_app
from app.settings import Settings
from tests.worlds.tiny_results import RUN, write_tiny_run

LANES = (
    Lane(source="smollm2", strength=0.0, text="plain"),
    Lane(source="smollm2", strength=2.0, text="pushed"),
)
FEATURE = 200


def store(client: TestClient, content_hash: str = "") -> str:
    """Store a generation that was finished earlier, and give its id."""
    content_hash = content_hash or client.get(f"/api/v1/runs/{RUN}/features/{FEATURE}").json()["content_hash"]
    parameters = Parameters(prompt="Say <b>", strength=2.0)
    with transaction(client.app.state.labels, writing=True) as session:  # type: ignore[attr-defined]
        stored = new_generation(
            session,
            run=RUN,
            feature=FEATURE,
            content_hash=content_hash,
            author=None,
            parameters=parameters,
            lanes=LANES,
        )
        save_generation(session, stored.model_copy(update={"state": "done"}))
    return stored.id


def words(client: TestClient, generation: str) -> str:
    """What the page of a generation says, from its heading on."""
    page = client.get(f"/generations/{generation}")
    assert page.status_code == 200
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.text[page.text.index("<h1>") :])).split())


def test_a_stored_generation_names_owner_and_verdict_of_its_feature(own_home: Path):
    write_tiny_run(own_home, amend=("update feature set verdict = 'refuted' where feature = 200",))

    with TestClient(create_app(Settings(home=own_home))) as client:
        assert words(client, store(client)).startswith("Steered with feature 200 smollm2 ✗ in both Prompt Say <b>")


def test_another_feature_under_the_same_number_is_not_taken_for_it(own_home: Path):
    write_tiny_run(own_home)

    with TestClient(create_app(Settings(home=own_home))) as client:
        assert words(client, store(client, "f00d")).startswith("Steered with feature 200 Prompt")


def test_a_stored_generation_outlives_the_results_of_its_run(own_home: Path):
    write_tiny_run(own_home)

    with TestClient(create_app(Settings(home=own_home))) as client:
        generation = store(client)
        shutil.move(own_home / "runs" / RUN, own_home / "elsewhere")
        client.app.state.catalog.forget(RUN)  # type: ignore[attr-defined]
        said = words(client, generation)

    assert said.startswith("Steered with feature 200 Prompt")
    assert "pushed" in said
