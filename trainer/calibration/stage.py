"""The `calibrate` stage: how often the rule supports claims that are false, and finds concepts that are there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.analysis.claims.claims import JudgedClaims, Ownership
from trainer.analysis.claims.verdict import SUPPORTED, verdict_shares
from trainer.analysis.rows.codes import CodeSpool
from trainer.analysis.rows.sample import sample_rows
from trainer.analysis.textless import judge_without_text
from trainer.calibration.noise import noise_store, store_moments
from trainer.calibration.placebo import judge_placebos
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
NULL_QUANTILE = 0.95
"""Quantile of the excess of the noise null's claims that is recorded."""


def calibrate(
    recipe: Recipe,
    calibration: CalibrationRecipe,
    store: ActivationStore,
    crosscoder: Crosscoder,
    *,
    folder: RunFolder,
    progress: Progress,
) -> None:
    """Run all experiments for a trained run and write `calibration.json` into its folder.

    An interrupted experiment resumes from its last checkpoint. The trained crosscoders are kept, so that calibrating
    with other thresholds needs no training. Raises RecipeError for a run without claims or with an imported crosscoder.
    """
    _check(recipe, crosscoder)
    names, rows = crosscoder.sources, calibration.rows
    runner = _ExperimentRunner(recipe, folder.calibration_work, progress)
    with progress.task("Summing moments", total=None):
        moments = store_moments(store, crosscoder)
    null_claims: list[dict[str, Any]] = []
    strengths: dict[str, list[float]] = {}
    for source in crosscoder.targets:

        def build_noise(path: Path, source: str = source) -> ActivationStore:
            return noise_store(store, path, crosscoder, source, moments, rows=rows, seed=calibration.seed)

        what = f"{source} replaced by what the others predict of it and noise, where its claims are false"
        with runner.run(f"noise-{source}", what, build_noise) as noise:
            of_source = noise.claims_of(source)
            strengths[source] = noise.judged_claims.null_strengths(of_source)
            null_claims.append({"kind": "noise", "source": source, "rows": noise.rows} | _null_counts(noise, of_source))

    spike_ins = SpikeInSet.from_recipe(calibration, crosscoder.widths)

    def build_spiked(path: Path) -> ActivationStore:
        return spiked_store(store, path, names, crosscoder.normaliser, spike_ins, rows=rows)

    planted = "concepts planted in the activations, to see which are recovered"
    with runner.run("spike-ins", planted, build_spiked) as spiked:
        feature = recovered_features(spiked.codes, spiked.crosscoder, spike_ins)
        table = recall_table(
            spike_ins.concepts, feature, spiked.ownership.owner, spiked.judged_claims.judgement.verdict
        )
        measures = _verdict_measures(spiked) | _recall_measures(table)
        densities = spiked.densities()
    with progress.task("Judging placebos", total=None):
        sample = sample_rows(store, crosscoder)
        counts = judge_placebos(sample, crosscoder.targets, moments, densities, recipe.analysis.verdict)
        null_claims += [count._asdict() | {"rows": sample.size, "excess_95": None} for count in counts]
    write_json(
        folder.calibration,
        {
            "measures": [{"kind": "spike-in", "measure": name, "value": float(x)} for name, x in measures.items()],
            "spike_in": table,
            "null_claims": null_claims,
            "noise_strengths": strengths,
        },
    )


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

    rows: int
    """Training rows."""
    crosscoder: Crosscoder
    codes: CodeSpool
    ownership: Ownership
    judged_claims: JudgedClaims

    def claims_of(self, owner: str) -> np.ndarray:
        """Which of the judged claims are live features of an owner, bool [claims]."""
        claims = self.judged_claims.claims
        named = np.array(self.ownership.owner, object)[claims] == owner
        return np.asarray(named & (self.codes.counts[claims] > 0), bool)

    def densities(self) -> list[float]:
        """Shares of the rows on which claimed features fire, without those that never do."""
        counts = self.codes.counts[self.judged_claims.claims]
        shares: list[float] = (counts[counts > 0] / max(self.codes.rows, 1)).tolist()
        return shares


@dataclass(frozen=True)
class _ExperimentRunner:
    """Builds, trains and judges experiments in a folder."""

    recipe: Recipe
    path: Path
    progress: Progress

    @contextmanager
    def run(self, name: str, what: str, build: Build) -> Iterator[_Experiment]:
        """Build rows, train and judge; the rows are deleted when the context ends. `what` describes it to the user."""
        folder = RunFolder(self.path / name)
        rows = folder.path / "rows"
        discard(rows)
        try:
            self.progress.notify(f"calibrate: {what}")
            store = build(rows)
            crosscoder = self._trained(store, folder)
            with CodeSpool(folder.path, crosscoder.features) as codes:
                verdicts = judge_without_text(store, crosscoder, codes, self.recipe.analysis, progress=self.progress)
                rows_trained = store.count("train")
                yield _Experiment(rows_trained, crosscoder, codes, verdicts.ownership, verdicts.judged_claims)
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


def _null_counts(experiment: _Experiment, claims: np.ndarray) -> dict[str, Any]:
    """How many of some false claims, bool [claims], could be judged and are supported."""
    judged_claims = experiment.judged_claims
    verdict = np.array(judged_claims.judgement.verdict, object)[judged_claims.claims]
    excess = judged_claims.evidence.excess.value
    judged = np.isfinite(excess) & np.isfinite(judged_claims.evidence.ratio.value) & claims
    return {
        "claims": int(claims.sum()),
        "judged": int(judged.sum()),
        "supported": int((claims & (verdict == SUPPORTED)).sum()),
        "excess_95": float(np.quantile(excess[judged], NULL_QUANTILE)) if judged.any() else None,
    }


def _verdict_measures(experiment: _Experiment) -> dict[str, float]:
    """Number of claims of live features, and the share of each verdict among them."""
    alive = experiment.codes.counts > 0
    verdicts = [
        verdict for verdict, live in zip(experiment.judged_claims.judgement.verdict, alive, strict=True) if live
    ]
    return {"claims": sum(map(bool, verdicts))} | verdict_shares(verdicts)


def _recall_measures(table: list[dict[str, Any]]) -> dict[str, float]:
    """Recall summed over all cells, by placement."""
    totals: dict[str, float] = {}
    for placement in ("exclusive", "shared"):
        rows = [row for row in table if row["placement"] == placement]
        for part in ("planted", "recovered", "as_claimed", "supported"):
            totals[f"{placement}.{part}"] = sum(row[part] for row in rows)
    return totals
