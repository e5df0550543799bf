"""What a run reports, on its page and in its JSON."""

import html
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from app.cli import main
from app.main import create_app
from app.results.runs.baselines import CorpusDivergence, SourcePair
from app.settings import Settings
from app.web.behaviour_sentence import behaviour_sentence
from tests.worlds.compared import COMPARED, DIVERGING, FOUND
from tests.worlds.tiny_results import RUN, write_tiny_run

APART = "On the same text base and tuned predict what comes next 0.02 nats apart (of 0.69 at most)"


def section(page: str) -> str:
    start = page.index('id="findings"')
    return page[start : page.index("</section>", start)]


def words(markup: str) -> str:
    """Text of some markup, as it is read."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", "", markup)))


def test_findings_are_told_in_order_with_effect_interval_recurrence_and_error_rate(own_home: Path):
    write_tiny_run(own_home, features=64, amend=(*COMPARED, *FOUND))

    with TestClient(create_app(Settings(home=own_home))) as client:
        raw = section(client.get(f"/runs/{RUN}").text)

    text = words(raw)
    for sentence in (
        "are 4.20 times [3.10 to 5.70] as far apart there as elsewhere, beyond what noise on the weights does.",
        "In 9 groups of documents, above the limit in either half of them.",
        "gemma3 expects such text better, by 0.310 nats per byte more than elsewhere.",
        "The null has none as strong.",
        "Of those as strong 5.0 % are to be expected without any difference.",
        "tells 33.0 % [27.0 % to 38.0 %] as many of its firings",
        "Found in 4 of 4 trainings, fires in 120 documents.",
        "differ on text in German",
        "of 1,500 kinds of text 2 are told here",
        "the same rule gives 0",
        "differ after a feature feature 7 fires at “ <q>”",
        "are 1.90 times [1.55 to 2.40] as far apart there as elsewhere",
        "smollm2 expects such text better, by 0.200 nats",
        "where the models differ more: 9",
        "are surely farther apart after 4 of 60 features",
        "the same rule gives 1",
    ):
        assert sentence in text, sentence
    assert text.index("ahoy") < text.index("33.0 %") < text.index("German")
    assert f'href="/runs/{RUN}/features/3"' in raw and f'href="/runs/{RUN}/features/5"' in raw
    assert f'href="/runs/{RUN}/features/7"' in raw
    assert "<q>" not in raw and "<b>" not in raw and "<i>" not in raw and "<u>" not in raw, (
        "text from the corpus is escaped"
    )


def test_a_run_that_reports_nothing_says_so_and_that_it_is_no_proof(own_home: Path):
    write_tiny_run(own_home, features=64)

    with TestClient(create_app(Settings(home=own_home))) as client:
        text = words(section(client.get(f"/runs/{RUN}").text))
        found = client.get(f"/api/v1/runs/{RUN}/findings").json()

    assert "Nothing is reported" in text and "predictions were not compared" in text and "not proof" in text
    assert found == {"sentence": None, "findings": [], "nulls": []}


def test_findings_are_json_with_names_for_sources_and_their_members(own_home: Path):
    write_tiny_run(own_home, features=64, amend=(*COMPARED, *FOUND))

    with TestClient(create_app(Settings(home=own_home))) as client:
        found = client.get(f"/api/v1/runs/{RUN}/findings").json()

    first, second, third, fourth = found["findings"]
    assert (first["base"], first["source"], first["owner"]) == ("smollm2", "gemma3", "gemma3")
    assert (first["effect"], first["low"], first["high"], first["fdr"]) == (4.2, 3.1, 5.7, 0)
    assert first["names"] == ["matey", "<i>arr</i>"] and first["source_expects"] == [" Ahoy", "<u>"]
    assert first["features"] == [5] and second["features"] == []
    (passage,) = first["passages"]
    assert passage["cells"][0]["tokens"] == [["good"], ["go", "od"]] and passage["reference"] == 0.03
    assert (second["feature"], second["base"], second["measure"]) == (3, None, "probe_ratio")
    assert third["subject"] == "de" and third["passages"] == []
    assert (fourth["kind"], fourth["feature"], fourth["features"]) == ("divergence", 7, [9])
    assert found["nulls"][1] == {
        "kind": "passage", "base": "smollm2", "source": "gemma3", "candidates": 1500, "reported": 2, "in_null": 0,
    }  # fmt: skip
    assert "0.034 nats apart" in found["sentence"]


def test_the_command_prints_them_in_one_line_each(own_home: Path):
    two_lines = "update finding set title = 'a' || chr(10) || 'b' where finding = 2"
    write_tiny_run(own_home, features=64, amend=(*COMPARED, *FOUND, two_lines))

    printed = CliRunner().invoke(main, ["findings", RUN], env={"CROSSDIFF_HOME": str(own_home)})

    assert printed.exit_code == 0
    *sentences, first, claim, third, fourth = printed.output.splitlines()
    assert "absence is not shown" in " ".join(sentences) or "not calibrated" in " ".join(sentences)
    assert "0.034 nats apart" in sentences[-1]
    assert first == (
        "  1  text with “<b>ahoy</b>”: smollm2 and gemma3 are 4.20 [3.10, 5.70] times as far apart there as elsewhere; "
        "in 9 groups of documents; error rate 0"
    )
    assert "smollm2: feature 3, fires at “ <s>”; the others tell 0.33 [0.27, 0.38] of its firings;" in claim
    assert third.startswith("  3  a↵b: ") and "error rate not known" in third
    assert "after feature 7, fires at “ <q>”: smollm2 and gemma3 are 1.90" in fourth
    unknown = CliRunner().invoke(main, ["findings", "none-00000000"], env={"CROSSDIFF_HOME": str(own_home)})
    assert unknown.exit_code == 1 and "none-00000000" in unknown.output


def pair(*parts: tuple[str, float, float, float], outcome: str = "token") -> SourcePair:
    """Corpus parts with the divergence, and the surprise of the base and of the source."""
    return SourcePair(
        "base",
        "tuned",
        outcome,
        tuple(
            CorpusDivergence(corpus, 100, base, source, abs(base - source), apart if outcome else None, None, None)
            for corpus, apart, base, source in parts
        ),
        (),
    )


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        (
            [("", 0.02, 1.0, 0.9), ("chats", 0.03, 1.0, 0.8), ("wiki", 0.01, 1.0, 1.0)],
            f"{APART}, most in chats (0.03); tuned expects better, in nats per byte: chats (0.2).",
        ),
        (
            [("", 0.02, 1.0, 1.001), ("chats", 0.03, 1.0, 1.001)],
            f"{APART}.",
        ),
        (
            [("", 0.0, 1.0, 1.0), ("chats", 0.0, 1.0, 1.0)],
            "base and tuned predict the same text alike: no difference beyond rounding.",
        ),
    ],
)
def test_how_far_apart_predictions_are_is_one_sentence(parts, sentence):
    assert behaviour_sentence([pair(*parts)]) == sentence
    assert behaviour_sentence([]) is None


def test_a_feature_says_how_much_more_the_models_differ_where_it_fires(own_home: Path):
    write_tiny_run(own_home, features=64, amend=DIVERGING)

    with TestClient(create_app(Settings(home=own_home))) as client:
        page = words(client.get(f"/runs/{RUN}/features/3").text)
        other = words(client.get(f"/runs/{RUN}/features/4").text)
        found = client.get(f"/api/v1/runs/{RUN}/features/3").json()["divergences"]

    assert "1.8 to 3.5" in page
    assert "Where it fires, do the models differ more?" in page and "Where it fires, do the" not in other
    assert found == [{"base": "smollm2", "source": "gemma3", "ratio": 2.5, "low": 1.75, "high": 3.5, "documents": 11}]
