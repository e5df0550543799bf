"""The explorer bench sends requests to a real server and reports their times."""

import asyncio
import os
import random

import pytest

from app.bench.explorer import Load, LoadResult, bench_explorer, report
from app.bench.visitors import KINDS, NotAnswered, Paths, Visit, visit_one_by_one
from tests.worlds.served import served
from trainer.bench.machine import Machine

KEYS = {"feature_page", "list", "search", "requests_per_s", "file_gb", "build_s"}
"""Public keys of the figures."""


def visits(kind: str, *server_ms: float) -> list[Visit]:
    return [Visit(kind, one, one + 5) for one in server_ms]


def test_figures_are_those_under_load_or_of_the_single_visitor_for_kinds_without_requests():
    measured = LoadResult(
        first={kind: visits(kind, 900)[0] for kind in KINDS},
        alone={"feature_page": visits("feature_page", 7, 9), "list": visits("list", 8), "search": visits("search", 50)},
        cpu_ms=dict.fromkeys(KINDS, 6.0),
        together=visits("feature_page", 30, 10, 20, 40) + visits("list", 11, 12),
        seconds=2.0,
        file_gb=0.5,
        build_s=3.0,
    )

    found = report(measured, 64, Load(), Machine())

    assert found.figures == {
        "feature_page": {"p50_ms": 20, "p99_ms": 40},
        "list": {"p50_ms": 11, "p99_ms": 12},
        "search": {"p50_ms": 50, "p99_ms": 50},
        "requests_per_s": 3.0,
        "file_gb": 0.5,
        "build_s": 3.0,
    }
    assert "A feature page alone takes 7.0 ms, within the limit of 30 ms" in found.text()
    assert found.rows[0][1:] == ("900", "6", "7", "9", "20", "40", "45", "4")


@pytest.mark.slow
def test_a_real_server_on_a_real_file_gives_all_figures(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CROSSDIFF_DATABASE_URL", "sqlite:////nowhere/at/all.db")

    found = bench_explorer(features=64, load=Load(visitors=2, rate=20, seconds=0.5, alone=2))

    assert set(found.figures) == KEYS
    assert all(set(found.figures[kind]) == {"p50_ms", "p99_ms"} for kind in KINDS)
    assert all(found.figures[kind]["p99_ms"] >= found.figures[kind]["p50_ms"] > 0 for kind in KINDS)
    assert 0 < found.figures["file_gb"] < 0.1
    assert os.environ["CROSSDIFF_DATABASE_URL"] == "sqlite:////nowhere/at/all.db"


def test_a_missing_page_is_an_error(own_home):
    paths = Paths("no-such-run", 10, ["word"] * 400, random.Random(0))

    with served(own_home) as (address, _), pytest.raises(NotAnswered, match="was answered with 404"):
        asyncio.run(visit_one_by_one(address, paths, "list", 1))


def test_paths_have_the_parameters_of_their_kind():
    paths = Paths("run", 10, [f"word{number}" for number in range(400)], random.Random(0))

    assert paths.path("feature_page").startswith("/runs/run/features/")
    assert all(key in paths.path("list") for key in ("owner=", "life=", "activation_min=", "sort="))
    assert "q=word" in paths.path("search")
    drawn = [paths.random_path()[0] for _ in range(500)]
    assert drawn.count("feature_page") > drawn.count("list") > drawn.count("search") > 0
