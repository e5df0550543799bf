"""The toy bench recovers the concepts of a small world and reports its scores."""

import json
from dataclasses import replace

import pytest

from trainer.bench.machine import Machine
from trainer.bench.toy import Comparison, bench_toy, compare, report
from trainer.bench.trial import TrialOutcome
from trainer.errors import RecipeError, UsageError
from trainer.run.folder import RunFolder
from trainer.toy.presets import Preset, preset
from trainer.toy.scoring import cosines
from trainer.toy.world import WorldPlan, random_world
from trainer.training.trainer import Training

PLAN = WorldPlan(concepts=32, widths=(20, 28), exclusive_share=0.25)
SETTINGS = (
    "crosscoder.exclusive_share=0.125",
    "crosscoder.dead_features.after_rows=3000",
    "training.batch=128",
    "training.learning_rate=0.02",
)


def small(variants: tuple[str, ...] = ("dfc",), rows: int = 4096, seeds: tuple[int, ...] = (0,)) -> Comparison:
    world = Preset("a tiny world", PLAN.concepts, lambda seed: random_world(PLAN, seed), (64,), variants)
    overrides = ("crosscoder.sparsity.k=1", *SETTINGS)
    return Comparison("tiny", world, variants, (64,), seeds, rows, overrides)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[TrialOutcome]:
    """A dedicated-feature crosscoder on 32 concepts, four of them in each source only."""
    return compare(small(rows=40_000), RunFolder(tmp_path_factory.mktemp("toy")))


def test_dedicated_features_recover_the_exclusive_concepts_of_a_tiny_world(found):
    (outcome,) = found

    assert (outcome.variant, outcome.features, outcome.seed) == ("dfc", 64, 0)
    # All of the eight, or all but one, and nearly all of the 24; which are missed depends on rounding.
    assert outcome.exclusive_recall is not None and outcome.exclusive_recall >= 7 / 8
    assert outcome.shared_recall is not None and outcome.shared_recall >= 0.75
    assert outcome.by_norm.right >= 7
    assert outcome.variance_explained > 0.9
    assert outcome.l0 == pytest.approx(1, abs=0.15)


def test_claims_are_made_of_residual_dictionaries_where_there_are_any(found, tmp_path):
    comparison = small(rows=40_000)
    beside = replace(comparison, overrides=(*comparison.overrides, "crosscoder.residual={features: 16, k: 1}"))

    ((plain,), (outcome,)) = found, compare(beside, RunFolder(tmp_path))

    assert outcome.features == plain.features == 64 and outcome.claims <= 2 * 16
    # What the crosscoder itself finds is the same; rounding aside, as is its l0.
    assert outcome.exclusive_recall == plain.exclusive_recall and outcome.l0 == pytest.approx(plain.l0, abs=0.01)
    assert outcome.claimed_recall is not None and outcome.claimed_recall >= 5 / 8
    assert outcome.by_verdict.too_narrow == outcome.by_verdict.nothing == 0


def test_no_feature_is_initialised_as_a_concept_of_its_world(tmp_path):
    """Both are random unit vectors; with the same seed they would be the same ones."""
    comparison = Comparison("paper", preset("paper"), ("standard", "dfc"), (512,), (0, 1), 2048)
    for seed in comparison.seeds:
        world = comparison.preset.make(seed)
        store, _ = world.write(tmp_path / str(seed), rows=2048, held_out=64)
        for recipe in comparison.recipes(seed):
            crosscoder = Training(recipe, store).crosscoder
            for source in world.sources:
                # Of 262,144 pairs of random directions in 128 dimensions, the closest has a cosine of about 0.41.
                assert cosines(crosscoder.decoder(source), world.vectors[source]).max() < 0.6


def test_every_variant_is_measured_in_order_and_no_rows_are_left_behind(tmp_path):
    comparison = small(("standard", "dfc"), seeds=(0, 1))

    outcomes = compare(comparison, RunFolder(tmp_path))

    assert [(outcome.seed, outcome.variant) for outcome in outcomes] == [
        (0, "standard"),
        (0, "dfc"),
        (1, "standard"),
        (1, "dfc"),
    ]
    assert list(tmp_path.glob("rows-*")) == []


def test_the_report_counts_calls_and_has_all_keys(found):
    toy_report = report(small(), found, Machine())

    (line,) = toy_report.figures["results"]
    assert {
        "variant",
        "features",
        "seed",
        "exclusive_recall",
        "shared_recall",
        "false_exclusive_rate",
        "dead_share",
        "supported_precision",
        "supported_recall",
    } <= line.keys()
    recall = found[0].exclusive_recall
    assert json.loads(toy_report.json())["results"][0]["exclusive_recall"] == recall
    assert toy_report.rows[0][2] == f"{recall:.2f} ({recall:.2f}–{recall:.2f})"
    assert "a tiny world" in toy_report.text()


def test_what_cannot_be_measured_is_refused_before_any_work():
    with pytest.raises(UsageError, match="No toy world is named 'mars'"):
        bench_toy("mars")
    with pytest.raises(RecipeError, match="variant"):
        bench_toy(variants=["standart"], seeds=1, rows=1000)
