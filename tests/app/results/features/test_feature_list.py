"""Every filter and order of the list gives what a plain scan of all features gives."""

import duckdb
import pytest

from app.errors import BadQuery
from app.results.connection import Results
from app.results.features.feature_list import (
    FeatureOrder,
    every_feature,
    feature_order,
    list_features,
    random_feature,
)
from app.results.features.query import PER_PAGE, FeatureQuery
from app.results.features.search import search_for


@pytest.fixture
def everything(tables: duckdb.DuckDBPyConnection) -> list[dict]:
    """All features with the norm share of the second source, as plain rows."""
    cursor = tables.execute(
        """
        select f.*, s.norm_share from feature f
        join feature_source s on s.feature = f.feature and s.source = 1 order by f.feature
        """
    )
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def indexes(results: Results, **state) -> list[int]:
    return [row.feature for row in every_feature(results, FeatureQuery(**state), state.pop("found", None))]


@pytest.mark.parametrize(
    ("state", "keeps"),
    [
        ({"owner": "gemma3"}, lambda f: f["owner"] == "gemma3"),
        ({"owner": ["gemma3", "other"]}, lambda f: f["owner"] in ("gemma3", "other")),
        ({"verdict": "none"}, lambda f: f["verdict"] == ""),
        ({"verdict": ["none", "untested"]}, bool),
        ({"group": "smollm2", "life": "alive"}, lambda f: f["group_name"] == "smollm2" and f["firings"] > 0),
        ({"life": "dead"}, lambda f: f["firings"] == 0),
        ({"corpus": "wiki"}, lambda f: f["main_corpus"] == "wiki"),
        ({"density_min": "0.01", "density_max": 0.05}, lambda f: 0.01 <= f["density"] <= 0.05),
        ({"share_max": 0.4}, lambda f: f["norm_share"] <= 0.4),
        ({"share_of": "smollm2", "share_max": 0.4}, lambda f: 1 - f["norm_share"] <= 0.4 + 1e-12),
        ({"activation_min": 30}, lambda f: f["max_activation"] >= 30),
        ({"template_min": 0.5}, lambda f: f["template_share"] is not None and f["template_share"] >= 0.5),
        ({"density_min": "", "owner": "", "q": ""}, bool),
    ],
)
def test_a_filter_agrees_with_a_scan_of_all_features(results: Results, everything, state, keeps):
    assert sorted(indexes(results, **state)) == [f["feature"] for f in everything if keeps(f)]
    assert list_features(results, FeatureQuery(**state), None).total == sum(map(bool, map(keeps, everything)))


@pytest.mark.parametrize("column", ["density", "max_activation", "norm_share", "score", "template_share"])
@pytest.mark.parametrize("sign", ["", "-"])
def test_sorting_puts_features_without_a_value_last_and_breaks_ties_by_index(results, everything, column, sign):
    known = [f for f in everything if f[column] is not None]
    unknown = [f["feature"] for f in everything if f[column] is None]
    ordered = sorted(known, key=lambda f: ((-1 if sign else 1) * f[column], f["feature"]))

    assert indexes(results, sort=f"{sign}{column}") == [f["feature"] for f in ordered] + unknown


def test_pages_follow_each_other_without_gap_or_repeat(results: Results, everything):
    first = list_features(results, FeatureQuery(sort="owner"), None)
    shown = []
    for page in range(1, first.pages + 1):
        rows = list_features(results, FeatureQuery(sort="owner", page=page), None).rows
        assert len(rows) <= PER_PAGE
        shown += [row.feature for row in rows]

    assert first.pages == 5
    assert shown == indexes(results, sort="owner")
    assert sorted(shown) == list(range(len(everything)))


def test_a_page_beyond_the_last_shows_the_last(results: Results):
    found = list_features(results, FeatureQuery(page=99), None)

    assert (found.page, found.pages) == (5, 5)
    assert len(found.rows) == 40


def test_a_facet_counts_its_values_under_the_other_filters(results: Results, everything):
    query = FeatureQuery(owner="gemma3", life="alive", share_min=0.5)
    facets = list_features(results, query, None).facets
    alive = [f for f in everything if f["firings"] > 0 and f["norm_share"] >= 0.5]

    owners = {value.value: value.count for value in facets["owner"]}
    assert owners == {owner: sum(f["owner"] == owner for f in alive) for owner in {f["owner"] for f in alive}}
    groups = {value.value: value.count for value in facets["group"]}
    mine = [f for f in alive if f["owner"] == "gemma3"]
    assert groups == {name: sum(f["group_name"] == name for f in mine) for name in {f["group_name"] for f in mine}}
    assert [value.value for value in facets["owner"] if value.chosen] == ["gemma3"]


def test_a_chosen_value_with_a_count_of_0_stays_in_its_facet(results: Results):
    facets = list_features(results, FeatureQuery(owner="nobody"), None).facets

    assert {(value.value, value.count, value.chosen) for value in facets["owner"]} >= {("nobody", 0, True)}


def test_text_restricts_to_the_features_it_was_found_in(results: Results):
    query = FeatureQuery(q="anything", life="alive")
    labelled = search_for(results, "anything", "labels", {3, 5, 15, 7})
    nothing = search_for(results, "anything", "labels", set())

    assert [row.feature for row in every_feature(results, query, labelled)] != []
    assert sorted(row.feature for row in every_feature(results, query, labelled)) == [3, 5, 7]
    assert every_feature(results, query, nothing) == []


def test_list_position_follows_the_filtered_list(results: Results):
    order = feature_order(results, FeatureQuery(owner="gemma3", sort="-density"), None)
    features = list(order.features)
    assert features == indexes(results, owner="gemma3", sort="-density")

    middle = order.position(features[4])
    assert (middle.position, middle.total) == (5, len(features))
    assert (middle.previous, middle.next) == (features[3], features[5])
    assert order.position(features[0]).previous is None
    assert order.position(features[-1]).next is None


def test_a_feature_outside_the_list_is_followed_by_its_first():
    found = FeatureOrder([7, 3, 5], [-1, -1, -1, 1, -1, 2, -1, 0]).position(4)

    assert (found.position, found.previous, found.next, found.total) == (None, None, 7, 3)
    assert FeatureOrder([], [-1] * 5).position(4).next is None


def test_a_random_feature_lives_and_passes_the_filters(results: Results):
    allowed = {row.feature for row in every_feature(results, FeatureQuery(owner="gemma3", life="alive"), None)}

    assert {random_feature(results, FeatureQuery(owner="gemma3"), None) for _ in range(10)} <= allowed
    assert random_feature(results, FeatureQuery(owner="nobody"), None) is None


def test_an_unknown_sort_key_or_source_is_refused_with_the_known_ones(results: Results):
    with pytest.raises(BadQuery, match="Sort by one of: relevance, score, feature"):
        list_features(results, FeatureQuery(sort="-beauty"), None)
    with pytest.raises(BadQuery, match="Its sources are smollm2, gemma3"):
        list_features(results, FeatureQuery(share_of="llama"), None)


def test_an_address_leaves_defaults_out_and_gives_the_same_state_back():
    query = FeatureQuery(owner=["a", "b"], density_min=0.001, q="ü &", page=3)

    pairs = query.pairs()

    assert pairs == [("owner", "a"), ("owner", "b"), ("q", "ü &"), ("density_min", "0.001"), ("page", "3")]
    assert FeatureQuery().pairs() == []


def test_toggling_a_chosen_value_removes_it_and_goes_to_the_first_page():
    query = FeatureQuery(owner="a", page=4)

    assert query.toggled("owner", "b") == [("owner", "a"), ("owner", "b")]
    assert query.toggled("owner", "a") == []


def test_a_columns_first_sort_is_by_its_strongest_and_the_second_reverses_it():
    assert FeatureQuery().sorted_by("density") == [("sort", "-density")]
    assert FeatureQuery(sort="-density").sorted_by("density") == [("sort", "density")]
    assert FeatureQuery(sort="density").sorted_by("density") == [("sort", "-density")]
    assert FeatureQuery().sorted_by("feature") == [("sort", "feature")]
    assert FeatureQuery().sorted_by("score") == [("sort", "score")]
