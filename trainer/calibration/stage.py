"""The `calibrate` stage: how often the rule supports claims that are false, and finds concepts that are there."""

from collections.abc import Callable, Iterator, Sequence
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
from trainer.training.ensemble import consensus_of, members
from trainer.training.stage import fingerprint_of, train_together

Build = Callable[[Path], ActivationStore]
NOTHING_FOUND: dict[str, Any] = {"claims": 0, "judged": 0, "supported": 0, "excess_95": None}
"""Counts of a null of whose trainings no two have a feature in common."""
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
        with runner.run(f"noise-{source}", what, build_noise, [source]) as noise:
            counted = _null_counts(noise, source) if noise is not None else NOTHING_FOUND
            strengths[source] = noise.strengths_of(source) if noise is not None else []
            null_claims.append({"kind": "noise", "source": source, "rows": min(rows, store.count("train"))} | counted)

    spike_ins = SpikeInSet.from_recipe(calibration, crosscoder.widths)

    def build_spiked(path: Path) -> ActivationStore:
        return spiked_store(store, path, names, crosscoder.normaliser, spike_ins, rows=rows)

    planted = "concepts planted in the activations, to see which are recovered"
    with runner.run("spike-ins", planted, build_spiked) as spiked:
        table = _recall_of(spiked, spike_ins)
        measures = _recall_measures(table) | (_verdict_measures(spiked) if spiked is not None else {})
        densities = spiked.densities() if spiked is not None else []
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

    crosscoder: Crosscoder
    codes: CodeSpool
    ownership: Ownership
    judged_claims: JudgedClaims

    def claims_of(self, owner: str) -> np.ndarray:
        """Which of the judged claims are live features of an owner, bool [claims]."""
        claims = self.judged_claims.claims
        named = np.array(self.ownership.owner, object)[claims] == owner
        return np.asarray(named & (self.codes.counts[claims] > 0), bool)

    def strengths_of(self, owner: str) -> list[float]:
        """Strengths of an owner's claims that the probes support."""
        return self.judged_claims.null_strengths(self.claims_of(owner))

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
    def run(self, name: str, what: str, build: Build, targets: Sequence[str] = ()) -> Iterator[_Experiment | None]:
        """Build rows, train and judge; the rows are deleted when the context ends. `what` describes it to the user.

        Of residual dictionaries only those of some `targets` are trained. None if the trainings have nothing in common.
        """
        folder = RunFolder(self.path / name)
        rows = folder.path / "rows"
        discard(rows)
        try:
            self.progress.notify(f"calibrate: {what}")
            store = build(rows)
            crosscoder = self._trained(store, folder, targets)
            if not crosscoder.groups:
                yield None
                return
            with CodeSpool(folder.path, crosscoder.features) as codes:
                verdicts = judge_without_text(store, crosscoder, codes, self.recipe.analysis, progress=self.progress)
                yield _Experiment(crosscoder, codes, verdicts.ownership, verdicts.judged_claims)
        finally:
            discard(rows)

    def _trained(self, store: ActivationStore, folder: RunFolder, targets: Sequence[str]) -> Crosscoder:
        """A crosscoder like the run's, or what its residual dictionaries have in common.

        Trainings of an earlier calibration with the same fingerprint are not repeated.
        """
        parts = members(self.recipe, folder, targets) or [(self.recipe, folder)]
        due = [part for part in parts if not _is_trained(*part, store)]
        if due:
            train_together(due, store, self.progress)
        for recipe, place in due:
            record_finished(place, "train", fingerprint_of(recipe, store), (place.crosscoder, place.weights))
            discard(place.checkpoints)
        device = measuring_device(self.recipe.training.device)
        trained = [Crosscoder.load(place.path).to(device) for _, place in parts]
        wanted = self.recipe.crosscoder.residual
        return trained[0] if wanted is None else consensus_of(trained, store, wanted)


def _is_trained(recipe: Recipe, folder: RunFolder, store: ActivationStore) -> bool:
    """Whether an earlier calibration has trained this on the same rows."""
    finished = read_record(folder).get("train")
    if finished is None or finished.inputs != fingerprint_of(recipe, store):
        return False
    return damaged_product(finished, (folder.crosscoder, folder.weights)) is None


def _recall_of(spiked: _Experiment | None, spike_ins: SpikeInSet) -> list[dict[str, Any]]:
    """Rows of the table `spike_in`."""
    if spiked is None:
        return recall_table(spike_ins.concepts, np.full(len(spike_ins.concepts), -1), [], [])
    feature = recovered_features(spiked.codes, spiked.crosscoder, spike_ins)
    verdicts = spiked.judged_claims.judgement.verdict
    return recall_table(spike_ins.concepts, feature, spiked.ownership.owner, verdicts)


def _null_counts(experiment: _Experiment, source: str) -> dict[str, Any]:
    """How many of a source's claims, all of them false, could be judged and are supported."""
    judged_claims, claims = experiment.judged_claims, experiment.claims_of(source)
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
