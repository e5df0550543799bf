"""Stage: build both sets of rows, train on them as the recipe says, and write down what became of the known truth."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.analysis.claims.claims import JudgedClaims, Ownership
from trainer.analysis.claims.verdict import shares
from trainer.analysis.rows.codes import CodeSpool
from trainer.analysis.textless import judged
from trainer.calibration.null import null_store
from trainer.calibration.recovery import came_back, recall_table
from trainer.calibration.spike_ins import Planted, spiked_store
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.errors import RecipeError
from trainer.recipe.measuring import CalibrationRecipe
from trainer.recipe.recipe import Recipe
from trainer.run.folder import RunFolder, discard, write_json
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore
from trainer.training.stage import fingerprint_of, train

Build = Callable[[Path], ActivationStore]
EXPERIMENTS = {
    "null": "one model against rotated copies of itself, where every claim is false",
    "spike-ins": "concepts planted in the activations, to see which come back",
}
"""What is said when an experiment begins, by the name of its folder."""


def calibrate(
    recipe: Recipe,
    calibration: CalibrationRecipe,
    store: ActivationStore,
    crosscoder: Crosscoder,
    *,
    folder: RunFolder,
    progress: Progress,
) -> None:
    """Make both experiments for a trained run and write `calibration.json` into its folder.

    Interrupted, it goes on from the last checkpoint; what was trained is kept, so that other thresholds cost no
    training. Raises RecipeError for a run that compares nothing or that was trained elsewhere.
    """
    _check(recipe, crosscoder)
    names, rows, least = crosscoder.sources, calibration.rows, recipe.analysis.verdict.owner_readout
    planted = Planted.of(calibration, crosscoder.widths)
    lab = _Lab(recipe, folder.calibration_work, progress)
    measures: list[dict[str, Any]] = []

    def say(kind: str, values: dict[str, float]) -> None:
        measures.extend({"kind": kind, "measure": name, "value": float(value)} for name, value in values.items())

    def copies(path: Path) -> ActivationStore:
        normaliser = crosscoder.normaliser[names[0]]
        return null_store(store, path, names, normaliser, rows=rows, seed=calibration.seed)

    with lab.trial("null", copies) as null:
        say("null", _of_claims(null) | _of_ratios(null, least))

    def spiked(path: Path) -> ActivationStore:
        return spiked_store(store, path, names, crosscoder.normaliser, planted, rows=rows)

    with lab.trial("spike-ins", spiked) as mixed:
        feature = came_back(mixed.codes, mixed.crosscoder, planted)
        table = recall_table(planted.concepts, feature, mixed.claimed.owner, mixed.weighed.judgement.verdict)
        say("spike-in", _of_claims(mixed) | _of_ratios(mixed, least) | _of_spike_ins(table))
    known = {"null": _judged(null, least)}
    write_json(folder.calibration, {"measures": measures, "spike_in": table, "known_false": known})


def _check(recipe: Recipe, crosscoder: Crosscoder) -> None:
    if recipe.imported is not None:
        raise RecipeError(
            "A crosscoder that another program trained cannot be calibrated, because its training cannot be repeated "
            "on other rows. Leave `calibration` out of the recipe."
        )
    if len(crosscoder.targets) < 2 or crosscoder.differences:
        raise RecipeError(
            f"Variant {recipe.crosscoder.variant} claims nothing about who has a feature, so there is nothing to "
            "calibrate. Leave `calibration` out of the recipe, or use dfc or standard."
        )


@dataclass(frozen=True)
class _Trial:
    """A crosscoder trained on rows whose truth is known, and what was made of its claims."""

    crosscoder: Crosscoder
    codes: CodeSpool
    claimed: Ownership
    weighed: JudgedClaims


@dataclass(frozen=True)
class _Lab:
    """Where experiments are made."""

    recipe: Recipe
    place: Path
    progress: Progress

    @contextmanager
    def trial(self, name: str, build: Build) -> Iterator[_Trial]:
        """Build, train and judge; the rows are there as long as the trial is."""
        folder = RunFolder(self.place / name)
        rows = folder.path / "rows"
        discard(rows)
        try:
            self.progress.say(f"calibrate: {EXPERIMENTS[name]}")
            store = build(rows)
            crosscoder = self._trained(store, folder)
            with CodeSpool(folder.path, crosscoder.features) as codes:
                found = judged(store, crosscoder, codes, self.recipe.analysis, progress=self.progress)
                yield _Trial(crosscoder, codes, found.claimed, found.weighed)
        finally:
            discard(rows)

    def _trained(self, store: ActivationStore, folder: RunFolder) -> Crosscoder:
        """The crosscoder of an earlier calibration if it would come out the same, else a new one."""
        fingerprint = fingerprint_of(self.recipe, store)
        if folder.crosscoder.is_file() and folder.finished_stages().get("train") == fingerprint:
            return Crosscoder.load(folder.path)
        train(self.recipe, store, folder, self.progress)
        write_json(folder.stages, {"train": fingerprint})
        discard(folder.checkpoints)
        return Crosscoder.load(folder.path)


def _judged(trial: _Trial, least: float) -> list[float]:
    """Strengths of the claims that could be judged."""
    contrast, claims = trial.weighed.contrast, trial.claimed.claims
    found: list[float] = contrast.strength[claims & (contrast.own >= least)].tolist()
    return found


def _of_claims(trial: _Trial) -> dict[str, float]:
    """What became of the claims of living features."""
    alive = trial.codes.counts > 0
    living = [word for word, lives in zip(trial.weighed.judgement.verdict, alive, strict=True) if lives]
    return {"claims": sum(map(bool, living))} | shares(living)


def _of_ratios(trial: _Trial, least: float) -> dict[str, float]:
    """How many claims could be judged, and how their readout ratios are spread."""
    known = 1 - np.array(_judged(trial, least))
    shares = (0, 1, 5, 50, 95) if len(known) else ()
    quantiles = {f"readout_contrast.{share}": float(np.quantile(known, share / 100)) for share in shares}
    return {"judged": len(known)} | quantiles


def _of_spike_ins(table: list[dict[str, Any]]) -> dict[str, float]:
    """Recall over all cells, by placement."""
    found: dict[str, float] = {}
    for placement in ("exclusive", "shared"):
        rows = [row for row in table if row["placement"] == placement]
        for part in ("planted", "recovered", "as_claimed", "supported"):
            found[f"{placement}.{part}"] = sum(row[part] for row in rows)
    return found
