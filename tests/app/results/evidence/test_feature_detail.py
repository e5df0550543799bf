"""The combined query for one feature returns what each table holds."""

import duckdb
import pytest

from app.errors import FeatureNotFound
from app.results.connection import Results
from app.results.evidence.feature_detail import feature_detail
from app.results.features.corpus_breakdown import corpus_shares
from app.results.features.feature import in_sources, one_feature


def test_feature_detail_holds_the_rows_of_each_table(results: Results, tables: duckdb.DuckDBPyConnection):
    for feature in (3, 15, 200):
        found = feature_detail(results, feature, {})

        assert found.feature == one_feature(results, feature)
        assert found.inside == in_sources(results, feature)
        bars = tables.execute("select low, high, count from histogram where feature = ? order by low", [feature])
        assert [(bar.low, bar.high, bar.count) for bar in found.bars] == bars.fetchall()
        logits = tables.execute("select source, rank, token from logit where feature = ? order by all", [feature])
        shown = sorted(
            (each.source, sign * (place + 1), logit.token)
            for each in found.logits
            for sign, side in ((1, each.promoted), (-1, each.suppressed))
            for place, logit in enumerate(side)
        )
        assert shown == logits.fetchall()
        neighbours = tables.execute(
            "select n.kind, n.other, o.owner, n.correlation from neighbour n join feature o on o.feature = n.other "
            "where n.feature = ?",
            [feature],
        )
        assert sorted((one.kind, one.feature, one.owner, one.correlation) for one in found.neighbours) == sorted(
            neighbours.fetchall()
        )


def test_neighbours_come_twins_first_and_each_kind_by_correlation(results: Results):
    kinds = {"twin": 0, "similar": 1, "coactive": 2}
    for feature in range(60):
        order = [(kinds[one.kind], -(one.correlation or 0)) for one in feature_detail(results, feature, {}).neighbours]
        assert order == sorted(order)


def test_a_feature_that_is_not_there_is_not_found(results: Results):
    with pytest.raises(FeatureNotFound):
        feature_detail(results, 240, {})


def test_corpus_shares_add_up_to_one_for_each_kind(results: Results):
    for parts in corpus_shares(results).values():
        assert sum(parts.values()) == pytest.approx(1)
