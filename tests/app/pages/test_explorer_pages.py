"""Overview, list, feature and sequence pages over the tiny run."""

import html
import re
from pathlib import Path

import duckdb
import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.worlds.tiny_results import RUN, write_tiny_run
from tests.worlds.tiny_text import THEMES

LIST = f"/runs/{RUN}/features"


def rows_of(page: str) -> list[int]:
    """Indexes of the features in a list, in order."""
    return [int(index) for index in re.findall(r'class="open" href="[^"]*">(\d+)</a>', page)]


def test_the_method_counts_owners_and_links_each_count_to_its_features(reader: TestClient):
    page = html.unescape(reader.get(f"/runs/{RUN}/method").text)

    for owner, count in re.findall(r'href="[^"]*owner=(\w+)&verdict=\w+&life=alive">([\d,]+)</a>', page):
        listed = reader.get(f"/api/v1{LIST}?owner={owner}&life=alive").json()
        assert listed["total"] == int(count)
    assert "untested" in page
    assert "exclusive_share: 0.15" in page


def test_every_chart_has_a_table_and_a_figure(reader: TestClient):
    page = html.unescape(reader.get(f"/runs/{RUN}/method").text)

    figures = re.findall(r'data-plot="([^"]+)"', page)
    assert len(figures) == 6
    for address in figures:
        figure = reader.get(address).json()
        assert figure["data"], address
        assert all(trace["meta"]["colour"].startswith("--") for trace in figure["data"])
    assert page.count("The same as a table") == 2


def test_the_figure_of_norms_counts_every_living_feature(reader: TestClient):
    figure = reader.get(f"/api/v1/runs/{RUN}/plots/norms").json()

    assert sum(sum(trace["y"]) for trace in figure["data"]) == 225
    assert figure["layout"]["xaxis"]["title"]["text"] == "relative norm: 0 only smollm2, 1 only gemma3"
    logarithmic = reader.get(f"/api/v1/runs/{RUN}/plots/norms?scale=log").json()
    assert logarithmic["layout"]["yaxis"]["type"] == "log"


@pytest.mark.parametrize("plot", ["densities", "norms"])
def test_a_bar_leads_to_exactly_its_features(reader: TestClient, plot: str):
    figure = reader.get(f"/api/v1/runs/{RUN}/plots/{plot}").json()

    for trace in figure["data"]:
        for count, (address, *_) in zip(trace["y"], trace["customdata"], strict=True):
            assert reader.get(f"/api/v1{address}").json()["total"] == count, address


def test_the_list_shows_the_state_of_its_address(reader: TestClient):
    page = reader.get(f"{LIST}?owner=gemma3&sort=-density").text

    owners = reader.get(f"/api/v1{LIST}?owner=gemma3&sort=-density").json()["features"]
    assert rows_of(page) == [row["feature"] for row in owners]
    assert 'aria-sort="descending"' in page
    assert f'<a href="{LIST}?sort=-density" aria-current="true">' in page, "the chosen value takes itself away"
    assert f'href="{LIST}/{rows_of(page)[0]}?owner=gemma3&amp;sort=-density"' in page


@pytest.mark.parametrize("sort", ["", "probe_ratio", "-fdr", "excess", "-excess", "kind", "-documents"])
def test_the_form_carries_the_order_along_once_whatever_it_is(reader: TestClient, sort: str):
    page = html.unescape(reader.get(f"{LIST}?sort={sort}").text)
    orders = page[page.index('name="sort"') : page.index("</select>", page.index('name="sort"'))]

    assert page.count('name="sort"') == 1
    assert orders.count(" selected>") == orders.count(f'<option value="{sort}" selected>') == 1


def test_several_values_of_a_facet_stay_in_every_link(reader: TestClient):
    page = html.unescape(reader.get(f"{LIST}?owner=gemma3&owner=other").text)

    both = "owner=gemma3&owner=other"
    assert f'href="{LIST}?{both}&owner=shared"' in page
    assert f'href="{LIST}?owner=other"' in page
    assert f"features.csv?{both}" in page
    assert f"/{rows_of(page)[0]}?{both}" in page
    assert page.count('<input type="hidden" name="owner"') == 2


def test_htmx_pushes_the_shortest_address_of_the_state(reader: TestClient):
    headers = {"HX-Request": "true", "HX-Request-Type": "partial", "HX-Target": "div#browser"}

    answer = reader.get(f"{LIST}?q=&within=&density_min=&owner=gemma3&sort=-score&page=1", headers=headers)

    assert answer.headers["hx-push-url"] == f"{LIST}?owner=gemma3"
    assert answer.text.lstrip().startswith('<div id="browser"')
    assert "hx-push-url" not in reader.get(f"{LIST}?owner=gemma3").headers


def test_search_finds_labels_contexts_peaks_and_indexes(reader: TestClient):
    reader.post(f"{LIST}/9/labels", data={"author": "Ada", "text": "Zebra crossings"})

    def found(query: str) -> set[int]:
        return {row["feature"] for row in reader.get(f"/api/v1{LIST}?{query}").json()["features"]}

    assert found("q=zebra") == {9}
    assert found("q=zebra&within=contexts") == set()
    assert found("q=17") >= {17}
    assert found("q=fox&within=peaks") <= found("q=fox&within=contexts")
    assert "Zebra crossings" in reader.get(f"{LIST}?q=zebra").text
    assert "No feature passes these filters" in reader.get(f"{LIST}?q=nothing+like+it").text


def test_the_list_narrows_to_a_language_shown_by_name_and_addressed_by_code(own_home: Path):
    codes = "['en', 'de', 'es', 'fr', 'it', 'ja', 'ko', 'pt', 'und']"
    write_tiny_run(own_home, features=64, amend=(f"update feature set main_language = {codes}[least(feature, 9)]",))
    with TestClient(create_app(Settings(home=own_home))) as client:
        page = html.unescape(client.get(LIST).text)
        chosen = html.unescape(client.get(f"{LIST}?language=pt").text)
        listed = client.get(f"/api/v1{LIST}?language=pt").json()

    assert f'href="{LIST}?language=de"' in page
    assert "German" in page
    assert "3 more</summary>" in page, "nine languages: the most frequent stand open"
    assert [row["feature"] for row in listed["features"]] == [8]
    assert '<input type="hidden" name="language" value="pt">' in chosen
    assert re.search(r'<details class="rest"[^>]* open>', chosen), "what is chosen is never folded away"


def test_the_list_explains_every_column_it_has(reader: TestClient):
    page = html.unescape(reader.get(LIST).text)

    heads = re.findall(r'<th scope="col"[^>]*><a href="[^"]*">([^<]+)', page)
    help_text = page[page.index('id="columns"') : page.index("</details>", page.index('id="columns"'))]
    explained = re.findall(r"<dt>([^<]+)</dt>", help_text)
    assert [head.strip() for head in heads] == explained
    assert f'href="/runs/{RUN}/evidence"' in help_text


@pytest.mark.parametrize(
    ("query", "offers"),
    [
        ("q=nothing+like+it", []),
        ("q=nothing+like+it&within=labels", ["?q=nothing%20like%20it"]),
        ("q=nothing+like+it&owner=gemma3", ["?q=nothing%20like%20it"]),
        ("density_min=2", []),
    ],
)
def test_an_empty_list_offers_the_way_out(reader: TestClient, query: str, offers: list[str]):
    page = html.unescape(reader.get(f"{LIST}?{query}").text)
    empty = page[page.index('<div class="empty">') :]

    assert "Start again without filters" in empty
    for offer in offers:
        assert f'href="{LIST}{offer}"' in empty
    assert ("Look for" in empty) == bool(offers)
    assert "random one" not in page
    assert "features.csv" not in page


def test_a_random_feature_keeps_the_list_it_came_from(reader: TestClient):
    answer = reader.get(f"/runs/{RUN}/random?owner=gemma3", follow_redirects=False)

    assert answer.status_code == 303
    assert re.fullmatch(rf"{LIST}/\d+\?owner=gemma3", answer.headers["location"])
    assert answer.headers["cache-control"] == "no-store"


def test_hostile_text_stays_text_everywhere(reader: TestClient, tables: duckdb.DuckDBPyConnection):
    (feature, sequence) = tables.execute(
        "select feature, sequence from firing where text like '%<script>alert%' and bucket = 'top' limit 1"
    ).fetchone()

    for path in (
        f"{LIST}/{feature}",
        f"{LIST}/{feature}?tokens=gemma3",
        f"/runs/{RUN}/sequences/{sequence}?feature={feature}",
        f"{LIST}?q=%3Cscript%3Ealert(1)%3C/script%3E",
        LIST,
    ):
        page = reader.get(path).text
        scripts = re.findall(r"<script[^>]*>", page)
        assert all(" src=" in script for script in scripts), path
        assert "<img" not in page
        assert "{{" not in page.replace("}} {% raw %}", "") or "7*7" in page
        assert "\x00" not in page
        assert "\u202e" not in page


def test_the_feature_page_names_its_owner_and_that_it_is_untested(reader: TestClient):
    page = html.unescape(reader.get(f"{LIST}/200").text)

    assert "Claimed for smollm2 alone — a candidate, not yet tested." in page
    assert "cannot write to gemma3: this is so by construction." in page


def test_both_tokenizations_stand_in_the_same_row(reader: TestClient, tables: duckdb.DuckDBPyConnection):
    (feature,) = tables.execute(
        "select feature from firing where text like '%copyright%' and bucket = 'top' limit 1"
    ).fetchone()

    both = reader.get(f"{LIST}/{feature}").text
    alone = reader.get(f"{LIST}/{feature}?tokens=gemma3").text

    row = '<span class="l"><span class="t part"> copyr</span><span class="t">ight</span></span>'
    assert f'{row}<span class="l"><span class="t"> copyright</span></span>' in both
    assert '<span class="l"><span class="t"> copyright</span></span>' in alone
    assert ">ight</span>" not in alone


def test_every_token_that_fired_has_its_value(reader: TestClient):
    page = reader.get(f"{LIST}/3").text

    coloured = re.findall(r'<span class="r a(\d+)[^"]*" data-v="([^"]+)" tabindex="(-?\d)"', page)
    assert coloured
    assert all(" of max" in value for _, value, _ in coloured)
    assert {tab for *_, tab in coloured} == {"0", "-1"}


def test_the_page_of_a_dead_feature_calls_it_dead(reader: TestClient):
    page = reader.get(f"{LIST}/15").text

    assert "Dead: it never fired" in page
    assert "It never fired on the rows analysed." in page


def test_contexts_can_be_narrowed_to_a_part_of_the_corpus(reader: TestClient):
    parts = set(re.findall(r"corpus_part=(\w+)", reader.get(f"{LIST}/3").text))
    page = reader.get(f"{LIST}/3?corpus_part=nowhere").text

    assert "was kept" in page
    for part in parts:
        assert f'<span class="muted">{part}</span>' in reader.get(f"{LIST}/3?corpus_part={part}").text


def test_previous_and_next_links_keep_filters_and_context_selection(reader: TestClient):
    order = rows_of(reader.get(f"{LIST}?owner=gemma3").text)

    page = reader.get(f"{LIST}/{order[1]}?tokens=smollm2&owner=gemma3").text

    assert f'rel="prev" href="{LIST}/{order[0]}?tokens=smollm2&amp;owner=gemma3"' in page
    assert f'rel="next" href="{LIST}/{order[2]}?tokens=smollm2&amp;owner=gemma3"' in page
    assert f"2 of {len(order)} filtered" in " ".join(page.split())


def test_a_whole_sequence_has_the_activations_of_its_feature(reader: TestClient):
    page = reader.get(f"{LIST}/3").text
    address = html.unescape(re.search(r'class="whole" href="([^"]+)"', page).group(1))

    whole = reader.get(address).text

    assert "with the activations of feature 3" in whole
    assert 'class="r unknown"' in whole or "kept firing" in whole


def test_a_run_of_three_sources_is_shown_as_well(own_home: Path):
    write_tiny_run(
        own_home,
        features=64,
        amend=(
            "insert into source values (2, 'third', 'm', null, 'resid_post', 1, 8, 1.0, null)",
            (
                "insert into feature_source by name "
                "select feature, 2 as source, 0.2 as decoder_norm, 0.2 as encoder_norm, 0.1 as norm_share from feature"
            ),
            "update feature_source set relative_norm = null",
            "update feature set owner = 'smollm2+third' where feature < 4",
            "update firing set tokens = list_append(tokens, tokens[1])",
            "update sequence set tokens = list_append(tokens, tokens[1])",
        ),
    )
    with TestClient(create_app(Settings(home=own_home))) as client:
        for path in ("/", f"/runs/{RUN}", LIST, f"{LIST}?share_of=third", f"{LIST}/1", f"{LIST}/1?tokens=third"):
            assert client.get(path).status_code == 200, path
        page = client.get(f"{LIST}/1").text
        assert "Claimed for smollm2 and third alone" in page
        firing, lines = page.count('<span class="r'), page.count('<span class="l">')
        assert lines == 3 * (firing - 10), "every row has a line per source, but for the ten steps of the legend"


def test_a_run_with_one_source_is_shown_as_well(own_home: Path):
    write_tiny_run(
        own_home,
        features=64,
        amend=(
            "delete from source where source = 1",
            "delete from feature_source where source = 1",
            "update feature_source set norm_share = 1, relative_norm = null, decoder_norm = 1",
            "update feature set owner = 'smollm2', verdict = ''",
            "update firing set tokens = tokens[1:1]",
            "update sequence set tokens = tokens[1:1]",
            "delete from logit where source = 1",
            "delete from evaluation where source = 1",
        ),
    )
    with TestClient(create_app(Settings(home=own_home))) as client:
        for path in ("/", f"/runs/{RUN}", LIST, f"{LIST}/1", f"{LIST}/60", f"/api/v1{LIST}/1"):
            assert client.get(path).status_code == 200, path


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("supported", "Among claims as strong, a share of 0.012 is expected to be noise."),
        ("refuted", "In both: claimed for gemma3 alone, but smollm2 has it as well"),
        ("undecided", "whether that is so can't be told"),
    ],
)
def test_a_verdict_is_in_words_with_the_expected_share_of_noise(own_home: Path, verdict: str, words: str):
    write_tiny_run(own_home, features=64, amend=(f"update feature set verdict = '{verdict}', fdr = 0.0123",))
    with TestClient(create_app(Settings(home=own_home))) as client:
        page = html.unescape(client.get(f"{LIST}/60").text)
        assert words in page
        assert f'class="verdict {verdict}"' in page


def test_the_tiny_run_has_every_trigger_text(tables: duckdb.DuckDBPyConnection):
    texts = " ".join(text for (text,) in tables.execute("select distinct text from firing").fetchall())

    for _, trigger, _ in THEMES.values():
        assert trigger in texts


def test_a_features_id_leads_to_its_page(reader: TestClient):
    one = reader.get(f"/api/v1{LIST}/7").json()

    found = reader.get(f"{LIST}/id/{one['content_hash']}", follow_redirects=False)

    assert (found.status_code, found.headers["location"]) == (302, f"{LIST}/7")
    assert reader.get(f"{LIST}/id/none").status_code == 404
    assert one["content_hash"] in reader.get(f"{LIST}/7").text
