"""Everything of one feature, read together, is what each table says by itself."""

import duckdb
import pytest

from app.errors import FeatureNotFound
from app.results.connection import Results
from app.results.evidence.feature_detail import dossier_of
from app.results.features.corpus_breakdown import usual_of
from app.results.features.feature import in_sources, one_feature


def test_the_dossier_holds_what_each_table_says(results: Results, tables: duckdb.DuckDBPyConnection):
    for feature in (3, 15, 200):
        found = dossier_of(results, feature, {})

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
        alike = tables.execute(
            "select n.kind, n.other, o.owner, n.correlation from neighbour n join feature o on o.feature = n.other "
            "where n.feature = ?",
            [feature],
        )
        assert sorted((one.kind, one.feature, one.owner, one.correlation) for one in found.alike) == sorted(
            alike.fetchall()
        )


def test_neighbours_come_twins_first_and_each_kind_by_correlation(results: Results):
    kinds = {"twin": 0, "similar": 1, "coactive": 2}
    for feature in range(60):
        order = [(kinds[one.kind], -(one.correlation or 0)) for one in dossier_of(results, feature, {}).alike]
        assert order == sorted(order)


def test_a_feature_that_is_not_there_is_not_found(results: Results):
    with pytest.raises(FeatureNotFound):
        dossier_of(results, 240, {})


def test_shares_of_the_text_add_up_for_each_kind_of_part(results: Results):
    for parts in usual_of(results).values():
        assert sum(parts.values()) == pytest.approx(1)
