"""Bench on toy worlds: which of the known concepts each crosscoder variant recovers."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from trainer.bench.machine import Machine
from trainer.bench.report import Report
from trainer.bench.trial import HELD_OUT, SampledWorld, TrialOutcome, run_trial
from trainer.errors import UsageError
from trainer.recipe.recipe import Recipe, load_recipe
from trainer.run.folder import RunFolder, home
from trainer.run.progress import Progress
from trainer.toy.presets import Preset, preset
from trainer.toy.scoring import MATCH, CallCounts

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "toy.yaml"
FIRST_TRAINING_SEED = 10_000
"""Keeps training seeds apart from world seeds, which would initialise the weights with the world's own directions."""
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
    "claims",
    "recall of claims",
    "supported",
    "recall of supported",
    "dead",
    "explained",
)
LEGEND = (
    "called exclusive: live features called for fewer than all sources = right + match a concept that more sources "
    "hold + match no concept, summed over the worlds; by norm a source counts when its decoder norm is at least a "
    "quarter of the largest, by group when the feature's group writes it. claims: features that claims are made of, "
    "those of residual dictionaries with crosscoder.residual; supported: claims that the evidence "
    "supports, tested on the held-out rows without the ground truth; recall of supported: share of the exclusive "
    "concepts recovered by claims whose right call is supported. false exclusive: share "
    "of the features matching a concept of several sources that are called by norm for fewer."
)


@dataclass(frozen=True)
class Comparison:
    """Which variants are trained at which sizes on which worlds."""

    world: str
    preset: Preset
    variants: tuple[str, ...]
    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    rows: int
    """Training rows per world."""
    overrides: tuple[str, ...] = ()

    def recipes(self, seed: int) -> list[Recipe]:
        """One recipe per size and variant. Raises RecipeError."""
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
) -> Report:
    """Train every variant at every size on worlds of several seeds, and score it against the ground truth.

    Raises UsageError for an unknown world, RecipeError for settings that make no crosscoder.
    """
    machine = Machine()
    if seeds < 1 or rows < 1:
        raise UsageError(f"{seeds} seeds of {rows:,} rows leave nothing to measure. Give at least one of each.")
    chosen = preset(world, exclusive_share)
    comparison = Comparison(
        world=world if exclusive_share is None else f"{world}-{exclusive_share:g}",
        preset=chosen,
        variants=tuple(variants) or chosen.variants,
        sizes=tuple(sizes) or chosen.sizes,
        seeds=tuple(range(seeds)),
        rows=rows,
        overrides=overrides,
    )
    home().mkdir(parents=True, exist_ok=True)
    # Not in /tmp, which is often memory: the rows of a world take gigabytes.
    with tempfile.TemporaryDirectory(prefix="bench-toy-", dir=home()) as folder:
        outcomes = compare(comparison, RunFolder(Path(folder)))
    return report(comparison, outcomes, machine)


def compare(comparison: Comparison, folder: RunFolder) -> list[TrialOutcome]:
    """Every trial's outcome, seed by seed; `folder` gets the log and, while they are needed, the rows of a world."""
    outcomes = []
    recipes_by_seed = {seed: comparison.recipes(seed) for seed in comparison.seeds}
    progress = Progress(folder, "toy")
    with progress.task("toy", total=sum(map(len, recipes_by_seed.values())) * comparison.rows) as task:
        for seed, recipes in recipes_by_seed.items():
            progress.log(f"toy: world {comparison.world}, seed {seed}: {len(recipes)} crosscoders")
            with SampledWorld.sample(comparison.preset.make(seed), comparison.rows, folder.path) as sampled:
                outcomes += [run_trial(recipe, sampled, task.advance) for recipe in recipes]
    return outcomes


def report(comparison: Comparison, outcomes: list[TrialOutcome], machine: Machine) -> Report:
    """The outcomes as table and figures."""
    rows = [
        _row([outcome for outcome in outcomes if (outcome.variant, outcome.features) == (variant, size)])
        for size in comparison.sizes
        for variant in comparison.variants
    ]
    figures = {"results": [_figures(outcome) for outcome in outcomes]}
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


def _row(outcomes: list[TrialOutcome]) -> tuple[str, ...]:
    """One line of the table: a variant at a size, over all seeds."""
    return (
        outcomes[0].variant,
        f"{outcomes[0].features:,}",
        mean_and_range([outcome.exclusive_recall for outcome in outcomes]),
        mean_by_third([outcome.exclusive_by_third for outcome in outcomes]),
        mean_and_range([outcome.shared_recall for outcome in outcomes]),
        mean_by_third([outcome.shared_by_third for outcome in outcomes]),
        call_counts([outcome.by_norm for outcome in outcomes]),
        mean_and_range([100 * outcome.by_norm.false_exclusive_rate for outcome in outcomes], "%"),
        call_counts([outcome.by_group for outcome in outcomes]),
        f"{sum(outcome.claims for outcome in outcomes)}",
        mean_and_range([outcome.claimed_recall for outcome in outcomes]),
        call_counts([outcome.by_verdict for outcome in outcomes]),
        mean_and_range([outcome.supported_recall for outcome in outcomes]),
        f"{100 * mean(outcome.dead_share for outcome in outcomes):.1f}%",
        f"{mean(outcome.variance_explained for outcome in outcomes):.3f}",
    )


def call_counts(calls: Sequence[CallCounts]) -> str:
    """Number of narrow calls over all worlds = right + too narrow + matching no concept."""
    sums = [sum(getattr(call, part) for call in calls) for part in ("right", "too_narrow", "nothing")]
    return f"{sum(sums)} = {sums[0]} + {sums[1]} + {sums[2]}"


def mean_and_range(values: Sequence[float | None], unit: str = "") -> str:
    """Mean, least and most of the measured values; a dash without any."""
    measured = [value for value in values if value is not None]
    if not measured:
        return "–"
    digits = 1 if unit else 2
    return f"{mean(measured):.{digits}f}{unit} ({min(measured):.{digits}f}–{max(measured):.{digits}f})"


def mean_by_third(values: Sequence[tuple[float | None, ...]]) -> str:
    """Means over the worlds for the rare, middle and frequent third of the concepts."""
    columns = [[value for value in column if value is not None] for column in zip(*values, strict=True)]
    return " / ".join(f"{mean(column):.2f}" if column else "–" for column in columns)


def _figures(outcome: TrialOutcome) -> dict[str, Any]:
    """One trial's entry in the JSON; `supported_recall` is relative to the recovered exclusive concepts."""
    return outcome.as_json() | {
        "false_exclusive_rate": outcome.by_norm.false_exclusive_rate,
        "precision": outcome.by_norm.precision,
        "supported_precision": outcome.by_verdict.precision,
    }
