"""The `calibrate` stage: trains on the null run and the spike-ins and records the verdicts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.analysis.claims.claims import JudgedClaims, Ownership
from trainer.analysis.claims.verdict import verdict_shares
from trainer.analysis.rows.codes import CodeSpool
from trainer.analysis.textless import judge_without_text
from trainer.calibration.null import null_store
from trainer.calibration.recovery import recall_table, recovered_features
from trainer.calibration.spike_ins import SpikeInSet, spiked_store
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.device import measuring_device
from trainer.errors import RecipeError
from trainer.recipe.measuring import CalibrationRecipe
from trainer.recipe.recipe import Recipe
from trainer.run.folder import RunFolder, discard, write_json
from trainer.run.progress import Progress
from trainer.run.record import damaged_product, read_record, record_finished
from trainer.store.store import ActivationStore
from trainer.training.stage import fingerprint_of, train

Build = Callable[[Path], ActivationStore]
EXPERIMENTS = {
    "null": "one model against rotated copies of itself, where every claim is false",
    "spike-ins": "concepts planted in the activations, to see which are recovered",
}
"""Description of each experiment for the progress line, by the name of its folder."""


def calibrate(
    recipe: Recipe,
    calibration: CalibrationRecipe,
    store: ActivationStore,
    crosscoder: Crosscoder,
    *,
    folder: RunFolder,
    progress: Progress,
) -> None:
    """Run both experiments for a trained run and write `calibration.json` into its folder.

    An interrupted experiment resumes from its last checkpoint. The trained crosscoders are kept, so that calibrating
    with other thresholds needs no training. Raises RecipeError for a run without claims or with an imported crosscoder.
    """
    _check(recipe, crosscoder)
    names, rows, least = crosscoder.sources, calibration.rows, recipe.analysis.verdict.owner_readout
    spike_ins = SpikeInSet.from_recipe(calibration, crosscoder.widths)
    runner = _ExperimentRunner(recipe, folder.calibration_work, progress)
    measures: list[dict[str, Any]] = []

    def record(kind: str, values: dict[str, float]) -> None:
        measures.extend({"kind": kind, "measure": name, "value": float(value)} for name, value in values.items())

    def build_null(path: Path) -> ActivationStore:
        normaliser = crosscoder.normaliser[names[0]]
        return null_store(store, path, names, normaliser, rows=rows, seed=calibration.seed)

    with runner.run("null", build_null) as null:
        record("null", _verdict_measures(null) | _contrast_measures(null, least))

    def build_spiked(path: Path) -> ActivationStore:
        return spiked_store(store, path, names, crosscoder.normaliser, spike_ins, rows=rows)

    with runner.run("spike-ins", build_spiked) as spiked:
        feature = recovered_features(spiked.codes, spiked.crosscoder, spike_ins)
        table = recall_table(
            spike_ins.concepts, feature, spiked.ownership.owner, spiked.judged_claims.judgement.verdict
        )
        record("spike-in", _verdict_measures(spiked) | _contrast_measures(spiked, least) | _recall_measures(table))
    known_false = {"null": _judged_strengths(null, least)}
    write_json(folder.calibration, {"measures": measures, "spike_in": table, "known_false": known_false})


def _check(recipe: Recipe, crosscoder: Crosscoder) -> None:
    if recipe.imported is not None:
        raise RecipeError(
            "An imported crosscoder cannot be calibrated: another program trained it, and its training cannot be "
            "repeated on other rows. Leave `calibration` out of the recipe."
        )
    if len(crosscoder.targets) < 2 or crosscoder.differences:
        raise RecipeError(
            f"Variant {recipe.crosscoder.variant} makes no claims about which source has a feature, so there is "
            "nothing to calibrate. Leave `calibration` out of the recipe, or use dfc or standard."
        )


@dataclass(frozen=True)
class _Experiment:
    """A crosscoder trained on rows with known ground truth, and the verdicts on its claims."""

    crosscoder: Crosscoder
    codes: CodeSpool
    ownership: Ownership
    judged_claims: JudgedClaims


@dataclass(frozen=True)
class _ExperimentRunner:
    """Builds, trains and judges experiments in a folder."""

    recipe: Recipe
    path: Path
    progress: Progress

    @contextmanager
    def run(self, name: str, build: Build) -> Iterator[_Experiment]:
        """Build rows, train and judge; the rows are deleted when the context ends."""
        folder = RunFolder(self.path / name)
        rows = folder.path / "rows"
        discard(rows)
        try:
            self.progress.notify(f"calibrate: {EXPERIMENTS[name]}")
            store = build(rows)
            crosscoder = self._trained(store, folder)
            with CodeSpool(folder.path, crosscoder.features) as codes:
                verdicts = judge_without_text(store, crosscoder, codes, self.recipe.analysis, progress=self.progress)
                yield _Experiment(crosscoder, codes, verdicts.ownership, verdicts.judged_claims)
        finally:
            discard(rows)

    def _trained(self, store: ActivationStore, folder: RunFolder) -> Crosscoder:
        """The crosscoder of an earlier calibration with the same fingerprint, else a newly trained one."""
        fingerprint = fingerprint_of(self.recipe, store)
        products = (folder.crosscoder, folder.weights)
        finished = read_record(folder).get("train")
        if finished is not None and finished.inputs == fingerprint and damaged_product(finished, products) is None:
            return self._loaded(folder)
        train(self.recipe, store, folder, self.progress)
        record_finished(folder, "train", fingerprint, products)
        discard(folder.checkpoints)
        return self._loaded(folder)

    def _loaded(self, folder: RunFolder) -> Crosscoder:
        return Crosscoder.load(folder.path).to(measuring_device(self.recipe.training.device))


def _judged_strengths(experiment: _Experiment, least: float) -> list[float]:
    """Strengths of the claims whose owner's readout suffices to judge them."""
    contrast, claims = experiment.judged_claims.contrast, experiment.ownership.claims
    strength = contrast.strength[claims & (contrast.own >= least)]
    strengths: list[float] = strength[np.isfinite(strength)].tolist()
    return strengths


def _verdict_measures(experiment: _Experiment) -> dict[str, float]:
    """Number of claims of live features, and the share of each verdict among them."""
    alive = experiment.codes.counts > 0
    verdicts = [
        verdict for verdict, live in zip(experiment.judged_claims.judgement.verdict, alive, strict=True) if live
    ]
    return {"claims": sum(map(bool, verdicts))} | verdict_shares(verdicts)


def _contrast_measures(experiment: _Experiment, least: float) -> dict[str, float]:
    """Number of claims that could be judged, and quantiles of their readout contrasts."""
    ratios = 1 - np.array(_judged_strengths(experiment, least))
    percents = (0, 1, 5, 50, 95) if len(ratios) else ()
    quantiles = {f"readout_contrast.{percent}": float(np.quantile(ratios, percent / 100)) for percent in percents}
    return {"judged": len(ratios)} | quantiles


def _recall_measures(table: list[dict[str, Any]]) -> dict[str, float]:
    """Recall summed over all cells, by placement."""
    totals: dict[str, float] = {}
    for placement in ("exclusive", "shared"):
        rows = [row for row in table if row["placement"] == placement]
        for part in ("planted", "recovered", "as_claimed", "supported"):
            totals[f"{placement}.{part}"] = sum(row[part] for row in rows)
    return totals
