"""Bench of the truth: which concepts of worlds that are known in full the crosscoders find, variant by variant."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from trainer.bench.chart import Panel, svg
from trainer.bench.deciding import fingerprint
from trainer.bench.machine import Machine
from trainer.bench.report import Report
from trainer.bench.trial import HELD_OUT, Ground, Outcome, trial
from trainer.errors import UsageError
from trainer.recipe.recipe import Recipe, load_recipe
from trainer.run.folder import RunFolder, home, published, write_json
from trainer.run.progress import Progress
from trainer.toy.presets import Preset, preset
from trainer.toy.scoring import MATCH, Calls

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "toy.yaml"
DECIDING = ("trainer.bench.trial", "trainer.toy.presets")
"""What an outcome on file was found with: these modules and what they import."""
FIRST_TRAINING_SEED = 10_000
"""Weights must not begin with the random numbers that the world's directions were made of."""
HEAD = (
    "variant",
    "features",
    "exclusive recall",
    "rare/middle/frequent",
    "shared recall",
    "rare/middle/frequent",
    "called exclusive by norm",
    "false exclusive",
    "by group",
    "supported",
    "recall of supported",
    "q ≤ 0.1",
    "dead",
    "explained",
)


LEGEND = (
    "called exclusive: living features called narrower than all sources = right + match a concept that more sources "
    "hold + match nothing, summed over the worlds; by norm a source counts when its decoder norm is at least a quarter "
    "of the largest, by group when the feature's group writes it. supported: claims that the evidence supports, judged "
    "on the held-out rows without the truth; recall of supported: of the exclusive concepts recovered, those whose "
    "right call is supported; q ≤ 0.1: claims by their q-value alone. false exclusive: how many of the features that "
    "match a concept of several sources are called by norm for fewer."
)


@dataclass(frozen=True)
class Comparison:
    """What is fitted to what."""

    world: str
    preset: Preset
    variants: tuple[str, ...]
    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    rows: int
    """Rows for training."""
    overrides: tuple[str, ...] = ()

    def recipes(self, seed: int) -> list[Recipe]:
        """A recipe for every size and variant. Raises RecipeError."""
        return [self._recipe(variant, size, seed) for size in self.sizes for variant in self.variants]

    def _recipe(self, variant: str, features: int, seed: int) -> Recipe:
        settings = self.preset.per_variant.get(variant, {}) | {"variant": variant, "features": features}
        fixed = [f"crosscoder.{key}={json.dumps(value)}" for key, value in settings.items()]
        fixed += [
            f"crosscoder.sparsity.k={round(self.preset.concepts / 100)}",
            f"training.seed={FIRST_TRAINING_SEED + seed}",
        ]
        return load_recipe(RECIPE, (*fixed, *self.overrides))


def bench_toy(
    world: str = "paper",
    *,
    variants: Sequence[str] = (),
    sizes: Sequence[int] = (),
    seeds: int = 5,
    rows: int = 2_000_000,
    exclusive_share: float | None = None,
    overrides: tuple[str, ...] = (),
    plot: Path | None = None,
) -> Report:
    """Fit every variant at every size to worlds of several seeds, and score what they found.

    What was fitted before by the same code is not fitted again, so that an interrupted bench goes on. `plot` gets a
    chart as SVG. Raises UsageError for an unknown world, RecipeError for settings that make no crosscoder.
    """
    machine = Machine()
    if seeds < 1 or rows < 1:
        raise UsageError(f"{seeds} seeds of {rows:,} rows leave nothing to measure. Give at least one of each.")
    found = preset(world, exclusive_share)
    comparison = Comparison(
        world=world if exclusive_share is None else f"{world}-{exclusive_share:g}",
        preset=found,
        variants=tuple(variants) or found.variants,
        sizes=tuple(sizes) or found.sizes,
        seeds=tuple(range(seeds)),
        rows=rows,
        overrides=overrides,
    )
    outcomes = compare(comparison, RunFolder(home() / "bench" / "toy"))
    if plot is not None:
        with published(plot) as draft:
            draft.write_text(chart(outcomes), encoding="utf-8")
    return report(comparison, outcomes, machine)


def compare(comparison: Comparison, folder: RunFolder) -> list[Outcome]:
    """Every trial's outcome, seed by seed; those on file in the folder are read, the others computed and filed."""
    outcomes = []
    code = fingerprint(*DECIDING)
    plans = {seed: comparison.recipes(seed) for seed in comparison.seeds}
    progress = Progress(folder, "toy")
    with progress.task("toy", total=sum(map(len, plans.values())) * comparison.rows) as task:
        for seed, recipes in plans.items():
            files = [folder.path / f"{_key(comparison, seed, recipe, code)}.json" for recipe in recipes]
            missing = [pair for pair in zip(recipes, files, strict=True) if not pair[1].is_file()]
            task.advance((len(recipes) - len(missing)) * comparison.rows)
            if missing:
                progress.log(f"toy: world {comparison.world}, seed {seed}: {len(missing)} crosscoders")
                world = comparison.preset.make(seed)
                with Ground.drawn(world, comparison.rows, folder.path) as ground:
                    for recipe, file in missing:
                        write_json(file, trial(recipe, ground, task.advance).as_json())
            outcomes += [Outcome.from_json(json.loads(file.read_text(encoding="utf-8"))) for file in files]
    return outcomes


def _key(comparison: Comparison, seed: int, recipe: Recipe, code: str) -> str:
    parts = [comparison.world, seed, comparison.rows, recipe.model_dump(mode="json"), code]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def report(comparison: Comparison, outcomes: list[Outcome], machine: Machine) -> Report:
    """The outcomes as table and figures."""
    rows = [
        _row([one for one in outcomes if (one.variant, one.features) == (variant, size)])
        for size in comparison.sizes
        for variant in comparison.variants
    ]
    figures = {"results": [_figures(one) for one in outcomes]}
    return Report(
        f"Toy world: {comparison.preset.about}",
        HEAD,
        tuple(rows),
        figures,
        (_scope(comparison), LEGEND, machine.note()),
    )


def _scope(comparison: Comparison) -> str:
    return (
        f"Mean (least–most) of {len(comparison.seeds)} worlds, each with {comparison.rows:,} rows for training and "
        f"{HELD_OUT:,} held out. Recovered: one feature has a cosine above {MATCH} in every source that holds the "
        "concept. Thirds of the concepts by how often they fire."
    )


def chart(outcomes: list[Outcome]) -> str:
    """Recall, false calls and dead features over the dictionary size, as SVG."""
    rates = [100 * one.by_norm.false_exclusive_rate for one in outcomes] + [5.0]
    panels = [
        _panel("recall of exclusive concepts", outcomes, lambda one: one.exclusive_recall, 1.0),
        _panel("recall of shared concepts", outcomes, lambda one: one.shared_recall, 1.0),
        _panel(
            "false exclusive calls by norm, %", outcomes, lambda one: 100 * one.by_norm.false_exclusive_rate, max(rates)
        ),
    ]
    return svg(panels, "features in the dictionary")


def _panel(title: str, outcomes: list[Outcome], measure: Callable[[Outcome], float | None], top: float) -> Panel:
    lines: dict[str, dict[int, list[float]]] = {}
    for one in outcomes:
        value = measure(one)
        if value is not None:
            lines.setdefault(one.variant, {}).setdefault(one.features, []).append(value)
    return Panel(title, lines, top)


def _row(outcomes: list[Outcome]) -> tuple[str, ...]:
    """One line of the table: a variant at a size, over all seeds."""
    return (
        outcomes[0].variant,
        f"{outcomes[0].features:,}",
        spread([one.exclusive_recall for one in outcomes]),
        thirds([one.exclusive_by_third for one in outcomes]),
        spread([one.shared_recall for one in outcomes]),
        thirds([one.shared_by_third for one in outcomes]),
        counts([one.by_norm for one in outcomes]),
        spread([100 * one.by_norm.false_exclusive_rate for one in outcomes], "%"),
        counts([one.by_group for one in outcomes]),
        counts([one.by_verdict for one in outcomes]),
        spread([one.supported_recall for one in outcomes]),
        counts([one.by_q_value for one in outcomes]),
        f"{100 * mean(one.dead_share for one in outcomes):.1f}%",
        f"{mean(one.variance_explained for one in outcomes):.3f}",
    )


def counts(calls: Sequence[Calls]) -> str:
    """Calls of all worlds together, and what they turned out to be."""
    sums = [sum(getattr(call, part) for call in calls) for part in ("right", "too_narrow", "nothing")]
    return f"{sum(sums)} = {sums[0]} + {sums[1]} + {sums[2]}"


def spread(values: Sequence[float | None], unit: str = "") -> str:
    """Mean and ends of what was measured; a dash when nothing was."""
    found = [value for value in values if value is not None]
    if not found:
        return "–"
    digits = 1 if unit else 2
    return f"{mean(found):.{digits}f}{unit} ({min(found):.{digits}f}–{max(found):.{digits}f})"


def thirds(values: Sequence[tuple[float | None, ...]]) -> str:
    """Means of the rare, middle and frequent third."""
    columns = [[value for value in column if value is not None] for column in zip(*values, strict=True)]
    return " / ".join(f"{mean(column):.2f}" if column else "–" for column in columns)


def _figures(one: Outcome) -> dict[str, Any]:
    """What `--json` says of one trial; its `supported_recall` is of the exclusive concepts that were recovered."""
    return one.as_json() | {
        "false_exclusive_rate": one.by_norm.false_exclusive_rate,
        "precision": one.by_norm.precision,
        "supported_precision": one.by_verdict.precision,
    }
