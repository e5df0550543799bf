"""A synthetic run is a results file like any other, of the given size."""

import duckdb
import numpy as np
import pytest

from app.results.connection import RunCatalog
from app.results.features.contexts import kept_windows
from trainer.bench.synthetic_run import CONTEXTS_PER_FEATURE, firings, publish_synthetic_run
from trainer.bench.synthetic_text import VOCABULARY, synthetic_text
from trainer.run.folder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home") / "runs" / "synthetic"
    return publish_synthetic_run(RunFolder(folder), features=64)


def test_every_live_feature_has_sixty_contexts_and_dead_ones_have_none(run):
    with duckdb.connect(str(run.file), read_only=True) as results:
        kept = results.sql(
            "select f.feature, f.firings > 0, count(k.feature) from feature f left join firing k using (feature) "
            "group by all"
        ).fetchall()

    assert CONTEXTS_PER_FEATURE == 60
    assert {feature: count for feature, alive, count in kept if alive} == {f: 60 for f in range(64) if f != 49}
    assert [(feature, count) for feature, alive, count in kept if not alive] == [(49, 0)]


def test_the_explorer_reads_it(run):
    catalog = RunCatalog(run.file.parents[1])
    results = catalog.results("synthetic")

    windows = kept_windows(results, 3, "top", "", scale=1.0)

    assert results.features == 64
    assert [source.name for source in results.sources] == ["first", "second"]
    assert sum(1 + len(window.repeats) for window in windows) == 20
    assert all(row.tokens[0] and row.tokens[1] for window in windows for row in window.rows)
    catalog.close()


def test_words_to_search_for_occur_in_the_text(run):
    with duckdb.connect(str(run.file), read_only=True) as results:
        (found,) = results.execute(
            "select count(*) from firing where contains(text, $word)", {"word": run.words[0]}
        ).fetchone()

    assert len(run.words) == VOCABULARY
    assert found > 0


def test_rows_of_firings_increase_within_a_feature_and_stay_in_range():
    codes = firings(40, 20, 5_000, np.random.default_rng(0))

    for feature in range(20):
        rows = codes.row[codes.start[feature] : codes.start[feature + 1]]
        assert (np.diff(rows) > 0).all()
        assert len(rows) == 0 if feature == 9 else len(rows) >= 200
    assert codes.row.min() >= 0 and codes.row.max() < 5_000
    assert (codes.value > 0).all()


def test_tokens_of_both_sources_spell_the_text():
    texts, row_order, _ = synthetic_text(3, 20, np.random.default_rng(1))

    for sequence in range(3):
        whole = bytes(texts.data[texts.text_start[sequence] : texts.text_start[sequence + 1]]).decode()
        for source in range(2):
            first, stop = texts.token_start[sequence * 2 + source], texts.token_start[sequence * 2 + source + 1]
            assert "".join(texts.token_text[first:stop].to_pylist()) == whole
            assert int(texts.token_end[stop - 1]) == len(whole.encode())
        ends = [
            set(texts.token_end[texts.token_start[n] : texts.token_start[n + 1]].tolist())
            for n in (2 * sequence, 2 * sequence + 1)
        ]
        assert sorted(ends[0] & ends[1]) == row_order.byte_end[row_order.sequence == sequence].tolist()


def test_every_claim_has_tests_and_a_table_of_agreement_as_in_a_real_run(run):
    with duckdb.connect(str(run.file), read_only=True) as results:
        claims = dict(results.sql("select feature, verdict from feature where verdict <> ''").fetchall())
        tests = results.sql("select feature, count(*) from evidence group by 1").fetchall()
        cells = results.sql("select feature, count(*) from agreement group by 1").fetchall()
        owners = results.sql("select distinct owner in ('first', 'second') from feature where verdict <> ''").fetchall()

    assert claims
    assert set(claims.values()) <= {"supported", "refuted", "undecided"}
    assert owners == [(True,)]
    assert {feature for feature, _ in tests} == {feature for feature, _ in cells} == set(claims)
    assert min(count for _, count in tests) >= 10
    assert {count for _, count in cells} == {36}
