"""Training-free baselines on a run's page and in its JSON."""

import html
from pathlib import Path

from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.worlds.compared import COMPARED, PLACES, TOKENS
from tests.worlds.tiny_results import RUN, write_tiny_run


def test_the_method_says_what_was_measured_and_why_something_was_not(own_home: Path):
    write_tiny_run(own_home, features=64, amend=COMPARED)

    with TestClient(create_app(Settings(home=own_home))) as client:
        raw = client.get(f"/runs/{RUN}/method").text

    section = raw[raw.index('id="without-training"') :]
    page = html.unescape(section[: section.index("</section>")])
    for words in ("no two of a & b share a space", "next byte", "0.660", "0.0340", "KL from smollm2", "wiki"):
        assert words in page, words
    assert "divergence 0.350 nats; cost smollm2 4.50, gemma3 0.750 nats" in page
    assert 'href="/runs/tiny-0123abcd"' in page
    assert " cake" in page and " baking" in page and "5.0 %" in page and "12.0×" in page
    assert "<b>" not in section and "<i>" not in section, "text from the corpus is escaped"


def test_figures_of_a_passage_are_reached_by_keyboard_and_need_no_pointer(own_home: Path):
    write_tiny_run(own_home, features=64, amend=COMPARED)

    with TestClient(create_app(Settings(home=own_home))) as client:
        page = client.get(f"/runs/{RUN}/method").text

    passage = page[page.index('<div class="rows" dir="auto" data-rows>') :]
    passage = passage[: passage.index("</div>")]
    assert 'data-v="divergence 0.350 nats; cost smollm2 4.50, gemma3 0.750 nats" tabindex="0"' in passage
    assert passage.count('tabindex="0"') == 1, "one passage is one stop of the Tab key"
    assert passage.count('tabindex="-1"') == 1, "the other place is reached by the arrow keys"
    assert "title=" not in passage
    assert "contexts.js" in page
    assert "darker" not in page, "in the dark theme stronger is lighter"


def test_a_span_is_shaded_by_its_divergence_over_ln_2(own_home: Path):
    write_tiny_run(own_home, features=64, amend=COMPARED)

    with TestClient(create_app(Settings(home=own_home))) as client:
        found = client.get(f"/api/v1/runs/{RUN}").json()["baselines"]

    (pair,) = found["pairs"]
    cells = pair["passages"][0]["cells"]
    assert [cell["level"] for cell in cells] == [0, 6], "0.35 of 0.693 is a little more than five tenths"
    assert [cell["peak"] for cell in cells] == [False, True]
    assert cells[0]["tokens"] == [["good"], ["go", "od"]]
    assert (pair["base"], pair["source"], pair["outcome"]) == ("smollm2", "gemma3", "byte")
    assert [(part["corpus"], part["kl_source_base"]) for part in pair["parts"]] == [("", 0.18), ("wiki", 0.07)]
    (position,) = found["differences"][0]["positions"]
    assert (position["of_typical"], position["of_expected"]) == (0.05, 12.0)
    assert [reading["reader"] for reading in position["readings"]] == ["smollm2", "gemma3"]
    assert found["states"]["lens"]["state"] == "undefined"


def test_a_run_without_baselines_has_no_such_section(own_home: Path):
    write_tiny_run(own_home, features=64)

    with TestClient(create_app(Settings(home=own_home))) as client:
        assert "without-training" not in client.get(f"/runs/{RUN}/method").text


def test_spans_without_divergence_are_shaded_by_surprise(own_home: Path):
    places = PLACES.replace("'divergence': 0.35", "'divergence': null").replace(
        "'divergence': 0.0", "'divergence': null"
    )
    passage = f"insert into baseline_passage values (0, 1, 0, 'wiki', 7, 0.5, 0, 'good <b>', {TOKENS}, {places})"
    surprises = """insert into baseline_divergence values (null, null, 0, 'surprise', 0.66, 9),
        (null, null, 1, 'surprise', 0.59, 9), (null, 0, 1, 'surprise_apart', 0.23, 9)"""
    state = "insert into baseline values ('divergence', 'measured', '')"
    write_tiny_run(own_home, features=64, amend=(state, surprises, passage))

    with TestClient(create_app(Settings(home=own_home))) as client:
        (pair,) = client.get(f"/api/v1/runs/{RUN}").json()["baselines"]["pairs"]
        page = client.get(f"/runs/{RUN}/method").text

    assert (pair["outcome"], pair["parts"][0]["jensen_shannon"]) == ("", None)
    assert [cell["level"] for cell in pair["passages"][0]["cells"]] == [0, 10]
    assert "Jensen" not in page
