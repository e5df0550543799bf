"""How much the sources tell of each other, as the overview reads and says it."""

from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.results.runs.predictability import Predictability, Told, clearly_least
from app.settings import Settings
from app.web.first_sentence import first_sentence
from tests.worlds.tiny_results import PREDICTABILITY, RUN, write_tiny_run


def told(name: str, low: float, r2: float, high: float) -> Told:
    return Told(name, None, 50, r2, low, high)


def measured(source: str, *given: str, r2: float = 0.5, languages: tuple[Told, ...] = ()) -> Predictability:
    return Predictability(source, given, told("", r2 - 0.01, r2, r2 + 0.01), (), (), languages)


def overview(home: Path, *amend: str) -> str:
    """The overview of a run whose results were changed by some statements."""
    write_tiny_run(home, amend=amend)
    with TestClient(create_app(Settings(home=home))) as client:
        page = client.get(f"/runs/{RUN}")
    assert page.status_code == 200
    return page.text


def test_two_sources_are_one_sentence():
    pair = [measured("small", "large", r2=0.614), measured("large", "small", r2=0.589)]

    assert first_sentence(pair) == (
        "large tells 61 % [60, 62] of small's variance linearly, small 59 % [58, 60] of large's."
    )
    assert first_sentence([]) is None


def test_the_language_least_told_of_is_named_only_if_its_interval_lies_apart():
    english, french = told("en", 0.6, 0.65, 0.7), told("fr", 0.55, 0.6, 0.65)
    apart, touching = told("zh", 0.3, 0.4, 0.5), told("zh", 0.3, 0.45, 0.55)

    assert clearly_least([english, french, apart]) == apart
    assert clearly_least([english, french, touching]) is None
    assert clearly_least([apart]) is clearly_least([]) is None
    named = [measured("a", "b", languages=(english, french, apart)), measured("b", "a", languages=(english, apart))]
    assert first_sentence(named) == (
        "b tells 50 % [49, 51] of a's variance linearly (least in Chinese: 40 % [30, 50]), a 50 % [49, 51] of b's."
    )


def test_corpus_parts_come_second_and_unclear_text_or_two_languages_do_not_count():
    english, french, unclear = told("en", 0.6, 0.65, 0.7), told("fr", 0.6, 0.65, 0.7), told("und", 0.0, 0.1, 0.2)
    parts = (told("wiki", 0.7, 0.8, 0.9), told("code", 0.0, 0.1, 0.2))
    one = replace(measured("a", "b", languages=(english, french, unclear)), corpora=parts)

    assert one.least == ("corpus", parts[1])
    assert replace(one, languages=(english, told("zh", 0.3, 0.4, 0.5))).least == ("corpus", parts[1])
    assert "(least in code: 10 % [0, 20])" in str(first_sentence([one]))


def test_three_sources_are_told_by_the_others_together():
    three = [measured("a", "b", "c", r2=0.8), measured("a", "b"), measured("a", "c"), measured("b", "a", "c")]
    three += [measured("b", "a"), measured("c", "a", "b", r2=0.3)]

    assert first_sentence(three) == (
        "b and c together tell 80 % [79, 81] of a's variance linearly, a and c 50 % [49, 51] of b's, "
        "a and b 30 % [29, 31] of c's."
    )


def test_of_many_sources_the_extremes_are_named():
    names = ("a", "b", "c", "d", "e")
    many = [measured(name, *(n for n in names if n != name), r2=0.1 * k + 0.2) for k, name in enumerate(names)]

    assert first_sentence(many) == (
        "Linearly, all other sources together tell from 20 % [19, 21] of the variance (a) to 60 % [59, 61] (e)."
    )


def test_a_share_below_zero_is_no_minus_zero():
    assert "tells 0 % [-1, 1] of" in str(first_sentence([measured("a", "b", r2=-0.002)]))


def test_the_overview_begins_with_it_and_the_method_has_the_table(reader: TestClient):
    page = reader.get(f"/runs/{RUN}").text
    sentence = (
        "gemma3 tells 61 % [60, 62] of smollm2&#39;s variance linearly, smollm2 59 % [58, 60] of gemma3&#39;s "
        "(least in Chinese: 41 % [36, 45])."
    )

    assert sentence in page
    assert page.index(sentence) < page.index('id="findings"')
    method = reader.get(f"/runs/{RUN}/method").text
    section = method[method.index('id="predictability"') : method.index('id="counts"')]
    assert section.count('<tr><th scope="row">') == len(PREDICTABILITY)
    for text in ("direction 1<", "directions 2 to 10<", "47.0 %", "36.0 % to 45.0 %", "not clear"):
        assert text in section


def test_the_json_of_the_run_says_the_same(reader: TestClient):
    run = reader.get(f"/api/v1/runs/{RUN}").json()

    assert run["first_sentence"].startswith("gemma3 tells 61 % [60, 62] of smollm2's variance linearly")
    one, other = run["predictability"]
    assert (one["source"], one["given"], other["source"], other["given"]) == (
        "smollm2",
        ["gemma3"],
        "gemma3",
        ["smollm2"],
    )
    assert [band["name"] for band in one["bands"]] == ["1", "2-10"]
    assert other["languages"][2] == {"name": "zh", "share": None, "groups": 20, "r2": 0.41, "low": 0.36, "high": 0.45}


@pytest.mark.parametrize(
    "statement",
    [
        "delete from predictability",
        "update predictability set r2 = 'nan'",
        "update predictability set source = 9",
        "delete from predictability where band is null and corpus is null and language is null",
    ],
)
def test_a_run_without_it_shows_neither_sentence_nor_table(tmp_path: Path, statement: str):
    page = overview(tmp_path, statement)

    assert 'id="predictability"' not in page and "variance linearly" not in page


def test_hostile_names_are_escaped(tmp_path: Path):
    page = overview(
        tmp_path,
        "update predictability set given = '<script>x</script>' where source = 1",
        "update predictability set language = '<b>zh</b>' where language = 'zh'",
    )

    assert "<script>x</script>" not in page and "<b>zh</b>" not in page
    assert "&lt;script&gt;x&lt;/script&gt;" in page
