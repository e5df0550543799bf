"""On what text the features of an owner fire, from results made by hand."""

from pathlib import Path

import numpy as np
import pytest

from app.bench.enrichment import bench_enrichment, enrichment
from app.errors import RunNotFound
from app.results.connection import RunCatalog
from tests.worlds.tiny_results import RUN, write_tiny_run

AMEND = (
    "delete from text_part where kind = 'language'",
    "insert into text_part values ('language', 'en', 900, 9), ('language', 'zh', 95, 3), ('language', 'de', 5, 1)",
    "update feature set owner = 'shared', verdict = '', firings = 100",
    "update feature set owner = 'gemma3', verdict = 'undecided' where feature < 10",
    "update feature set verdict = 'refuted' where feature < 2",
    "update feature set firings = 49 where feature in (2, 40)",
    "delete from feature_language",
    "insert into feature_language select feature, 'en', 60 from feature",
    # Four in ten of the owner's firings are Chinese, one in four of the shared ones; those left out would change both.
    (
        "insert into feature_language select feature, 'zh', case when feature < 2 or feature = 40 then 9000 "
        "when feature < 10 then 40 else 20 end from feature"
    ),
    "update sequence set \"text\" = 'a plain line; and no more'",
    "update sequence set \"text\" = 'first' || chr(10) || '  def f(x):' where sequence % 2 = 0",
)


def test_shares_are_compared_with_those_of_shared_features(own_home: Path):
    write_tiny_run(own_home, features=64, amend=AMEND)

    found = enrichment(RunCatalog(own_home / "runs").results(RUN))

    chinese, code = found
    assert (chinese.owner, chinese.features, chinese.text) == ("gemma3", 7, "zh"), (
        "German is too rare, English the rest"
    )
    assert (chinese.share, chinese.shared) == (pytest.approx(0.4), pytest.approx(0.25))
    assert chinese.low == chinese.high == pytest.approx(1.6), "all of a kind are alike"
    assert code.text == "code" and 0 < code.share < 1 and code.low < code.times < code.high


def test_few_features_have_no_interval_and_a_text_of_one_shared_feature_has_numbers(own_home: Path):
    rare = (
        *AMEND,
        "delete from feature_language where language = 'zh' and feature <> 50",
        "update feature set owner = 'smollm2', verdict = 'undecided' where feature between 60 and 62",
    )
    write_tiny_run(own_home, features=64, amend=rare)

    found = enrichment(RunCatalog(own_home / "runs").results(RUN))

    assert {one.owner for one in found} == {"gemma3"}, "three features are too few"
    assert all(np.isfinite([one.times, one.low, one.high]).all() for one in found)


def test_the_table_says_what_was_compared_and_an_unknown_run_is_refused(own_home: Path):
    write_tiny_run(own_home, features=64, amend=AMEND)

    report = bench_enrichment(RUN)

    assert report.rows[0] == ("gemma3", "7", "zh", "0.4000", "0.2500", "1.60", "1.60–1.60")
    with pytest.raises(RunNotFound):
        bench_enrichment("none-00000001")
