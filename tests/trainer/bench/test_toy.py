"""The toy bench finds what a small world hides, goes on where it was interrupted, and shows what it found."""

import json
import xml.etree.ElementTree as ET

import pytest

from trainer.bench.chart import Panel, svg
from trainer.bench.machine import Machine
from trainer.bench.toy import Comparison, bench_toy, chart, compare, report
from trainer.bench.trial import Outcome
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
def found(tmp_path_factory) -> list[Outcome]:
    """A dedicated-feature crosscoder on 32 concepts, four of them in each source only."""
    return compare(small(rows=40_000), RunFolder(tmp_path_factory.mktemp("toy")))


def test_dedicated_features_find_the_exclusive_concepts_of_a_tiny_world(found):
    (one,) = found

    assert (one.variant, one.features, one.seed) == ("dfc", 64, 0)
    # Each of the eight, and nearly all of the 24; which is left out hangs on rounding.
    assert one.exclusive_recall is not None and one.exclusive_recall >= 7 / 8
    assert one.shared_recall is not None and one.shared_recall >= 0.75
    assert one.by_norm.right >= 7
    assert one.variance_explained > 0.9
    assert one.l0 == pytest.approx(1, abs=0.15)


def test_no_feature_begins_as_a_concept_of_its_world(tmp_path):
    """Both are random unit vectors; drawn from one seed they were the same ones."""
    comparison = Comparison("paper", preset("paper"), ("standard", "dfc"), (512,), (0, 1), 2048)
    for seed in comparison.seeds:
        world = comparison.preset.make(seed)
        store, _ = world.write(tmp_path / str(seed), rows=2048, held_out=64)
        for recipe in comparison.recipes(seed):
            crosscoder = Training(recipe, store).crosscoder
            for source in world.sources:
                # Of 262,144 pairs of random directions in 128 dimensions, the closest has a cosine of about 0.41.
                assert cosines(crosscoder.decoder(source), world.vectors[source]).max() < 0.6


def test_an_interrupted_bench_goes_on_with_what_is_missing(tmp_path):
    folder, comparison = RunFolder(tmp_path), small(("standard", "dfc"))
    first = compare(comparison, folder)
    kept, lost = sorted(tmp_path.glob("[0-9a-f]*.json"), key=lambda path: json.loads(path.read_text())["variant"])
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"l0": 99.0}))
    lost.unlink()

    second = compare(comparison, folder)

    assert [one.variant for one in second] == ["standard", "dfc"]
    assert second[1].l0 == 99.0, "the one on file was read"
    assert second[0] == first[0], "the missing one came out the same"
    assert list(tmp_path.glob("rows-*")) == [], "no rows are left behind"


def test_other_settings_or_rows_are_fitted_anew(tmp_path):
    folder = RunFolder(tmp_path)
    compare(small(rows=1024), folder)
    compare(small(rows=2048), folder)
    compare(small(rows=1024, seeds=(0, 1)), folder)

    assert len(list(tmp_path.glob("[0-9a-f]*.json"))) == 3


def test_the_report_counts_calls_and_gives_the_contracts_keys(found):
    shown = report(small(), found, Machine())

    (line,) = shown.figures["results"]
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
    assert json.loads(shown.json())["results"][0]["exclusive_recall"] == recall
    assert shown.rows[0][2] == f"{recall:.2f} ({recall:.2f}–{recall:.2f})"
    assert "a tiny world" in shown.text()


def test_outcomes_come_back_from_json_the_same(found):
    assert [Outcome.from_json(json.loads(json.dumps(one.as_json()))) for one in found] == found


def test_the_chart_is_an_image_with_a_line_for_every_variant(found):
    root = ET.fromstring(chart(found))

    lines = root.findall(".//{*}polyline")
    assert root.tag.endswith("svg") and len(lines) == 3


def test_a_chart_puts_values_at_their_height_and_names_in_words():
    root = ET.fromstring(svg([Panel("recall <of> all", {"a & b": {8: [0.0, 1.0], 16: [1.0]}}, 2.0)], "size"))

    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"recall <of> all", "a & b", "8", "16", "size"} <= set(texts)
    heights = [float(dot.get("cy", "")) for dot in root.iter("{http://www.w3.org/2000/svg}circle")]
    # Of 190 points for 2.0: both values at 8, their mean, then the one at 16 and its mean.
    assert heights == [190.0, 95.0, 142.5, 95.0, 95.0]


def test_what_cannot_be_measured_is_refused_before_any_work():
    with pytest.raises(UsageError, match="No toy world is named 'mars'"):
        bench_toy("mars")
    with pytest.raises(RecipeError, match="variant"):
        bench_toy(variants=["standart"], seeds=1, rows=1000)
