"""Trains one crosscoder on a toy world, with residual dictionaries if it has them, and scores both."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.analysis.claims.claims import candidates
from trainer.bench.trial_progress import Advance, TrialProgress
from trainer.bench.verdicts import supported_calls
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.evaluation.reconstruction import Tally
from trainer.recipe.recipe import Recipe
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress
from trainer.store.store import ActivationStore
from trainer.toy.scoring import THIRDS, CallCounts, DictionaryMatches, GroundTruth, recall
from trainer.toy.world import World
from trainer.training.stage import train

HELD_OUT = 65_536
"""Held-out rows; a feature that fires on none of them counts as dead."""
BLOCK = 8192
"""Rows scored at a time."""
CALL_COUNTS = ("by_norm", "by_group", "by_verdict")
"""Fields of an outcome that hold CallCounts."""


@dataclass(frozen=True)
class TrialOutcome:
    """Scores of one crosscoder on one world; a recall is None when no concept could be recovered."""

    variant: str
    features: int
    seed: int
    exclusive_recall: float | None
    """Recall of the concepts that one source alone holds."""
    shared_recall: float | None
    """Recall of the concepts that several sources hold, each matched by one feature in all of them."""
    split_recall: float | None
    """Shared recall when different features may match in different sources."""
    declared_recall: float | None
    """Recall of the exclusive concepts by features whose group writes that source alone."""
    exclusive_by_third: tuple[float | None, ...]
    """Exclusive recall in the rare, middle and frequent third of all concepts."""
    shared_by_third: tuple[float | None, ...]
    by_norm: CallCounts
    """Calls by decoder norms."""
    by_group: CallCounts
    """Calls by the sources that a feature's group writes."""
    false_exclusive_by_third: tuple[int, ...]
    """Features called exclusive by norm that match a concept of more sources, by the third of that concept."""
    density_ratio: float | None
    """Median firings of features called exclusive by norm over those of features called shared."""
    dead_share: float
    variance_explained: float
    """Mean over the sources, on held-out rows."""
    l0: float
    """Active features per held-out row."""
    claims: int
    """Live features of which claims can be made: residual dictionaries', if there are any, else all."""
    claimed_recall: float | None
    """Exclusive recall of these features."""
    by_verdict: CallCounts
    """Calls that the evidence supports."""
    supported_recall: float | None
    """Share of the exclusive concepts that these features recover which one with a right, supported call recovers."""

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return vars(self) | {key: vars(getattr(self, key)) for key in CALL_COUNTS}


@dataclass(frozen=True)
class SampledWorld:
    """A world with rows sampled to disk."""

    seed: int
    world: World
    store: ActivationStore
    frequency: torch.Tensor
    """Share of the rows on which each concept fires [C]."""

    @classmethod
    @contextmanager
    def sample(cls, world: World, rows: int, folder: Path) -> Iterator["SampledWorld"]:
        """Samples `rows` training rows and HELD_OUT held-out rows into `folder` for the time of the context."""
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="rows-", dir=folder) as path:
            store, frequency = world.write(Path(path), rows=rows, held_out=HELD_OUT)
            yield cls(world.seed, world, store, frequency)


def run_trial(recipe: Recipe, sampled: SampledWorld, advance: Advance) -> TrialOutcome:
    """Trains one crosscoder and scores it; `advance` is called with the rows trained on since its last call."""
    with tempfile.TemporaryDirectory(prefix="trial-", dir=sampled.store.path) as path:
        folder = RunFolder(Path(path) / "run")
        folder.path.mkdir()
        progress = TrialProgress(folder, sampled.store.count("train"), advance)
        crosscoder = train(recipe, sampled.store, folder, progress)
        return score(recipe, crosscoder, sampled, progress)


def score(recipe: Recipe, crosscoder: Crosscoder, sampled: SampledWorld, progress: Progress) -> TrialOutcome:
    """Scores a trained crosscoder against the ground truth of the sources it reconstructs."""
    plain = crosscoder.reconstructing
    tally = held_out_tally(plain, sampled.store)
    measures = [(one["measure"], one["value"]) for one in tally.measures()]
    explained = [value for name, value in measures if name == "variance_explained"]
    truth = GroundTruth({source: sampled.world.vectors[source] for source in crosscoder.targets}, sampled.frequency)
    decoders = {source: crosscoder.decoder(source).cpu() for source in crosscoder.targets}
    browsed = torch.cat([torch.full((group.features,), group.reconstructs) for group in crosscoder.groups])
    firings = tally.firings if plain is crosscoder else held_out_tally(crosscoder, sampled.store).firings
    alive, live = firings > 0, (firings > 0) & browsed
    matches = DictionaryMatches(truth, decoders, live)
    by_norm, by_group = matches.calls_by_norm(), matches.calls_by_group()
    # Claims are made of residual dictionaries' features, where there are any.
    claimed = alive & torch.from_numpy(candidates(crosscoder))
    found = DictionaryMatches(truth, decoders, claimed)
    supported = supported_calls(crosscoder, sampled.store, recipe.analysis, progress, sampled.store.path)[claimed]
    thirds = [truth.third(name) for name in THIRDS]
    return TrialOutcome(
        recipe.crosscoder.variant,
        int(browsed.sum()),
        sampled.seed,
        exclusive_recall=recall(matches.recovered, truth.exclusive),
        shared_recall=recall(matches.recovered, truth.shared),
        split_recall=recall(matches.recovered_split, truth.shared),
        declared_recall=recall(matches.recovered_as_called(by_group), truth.exclusive),
        exclusive_by_third=tuple(recall(matches.recovered, truth.exclusive & third) for third in thirds),
        shared_by_third=tuple(recall(matches.recovered, truth.shared & third) for third in thirds),
        by_norm=matches.count_calls(by_norm),
        by_group=matches.count_calls(by_group),
        false_exclusive_by_third=tuple(matches.count_calls(by_norm, among=third).too_narrow for third in thirds),
        density_ratio=density_ratio(firings[live], by_norm),
        dead_share=1 - float(alive[browsed].float().mean()),
        variance_explained=sum(explained) / len(explained),
        l0=dict(measures)["l0"],
        claims=int(claimed.sum()),
        claimed_recall=recall(found.recovered, truth.exclusive),
        by_verdict=found.count_calls(supported),
        supported_recall=recall(found.recovered_as_called(supported), truth.exclusive & found.recovered),
    )


def held_out_tally(crosscoder: Crosscoder, store: ActivationStore) -> Tally:
    """Firings and reconstruction errors on the held-out rows."""
    blocks = [block.rows for block in store.blocks("held_out", rows=BLOCK)]
    derived = [crosscoder.with_differences(rows) for rows in blocks]
    means = {source: torch.cat([rows[source] for rows in derived]).float().mean(dim=0) for source in crosscoder.targets}
    tally = Tally(crosscoder, means)
    for rows in blocks:
        tally.add(rows, crosscoder.encode(rows))
    return tally


def density_ratio(firings: torch.Tensor, calls: torch.Tensor) -> float | None:
    """Median firings of features called for one source over those called for all; None when either set is empty."""
    exclusive, shared = firings[calls.sum(dim=1) == 1].double(), firings[calls.all(dim=1)].double()
    return float(exclusive.median() / shared.median()) if len(exclusive) and len(shared) else None
