"""Trial: one crosscoder fitted to a world whose concepts are known, and how much of the truth it found."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.bench.verdicts import calls
from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.fold_damping import undamped
from trainer.evaluation.reconstruction import Tally
from trainer.recipe.recipe import Recipe
from trainer.store.store import ActivationStore
from trainer.toy.scoring import THIRDS, Calls, Found, Truth, recall
from trainer.toy.world import World
from trainer.training.trainer import Training

HELD_OUT = 65_536
"""Rows beyond the training rows; a feature that fires on none of them counts as dead."""
BLOCK = 8192
"""Rows scored at a time."""
STEPS = 20
"""Steps between signs of progress."""
CALLS = ("by_norm", "by_group", "by_verdict", "by_q_value")
"""Ways to call features, as fields of an outcome."""
Advance = Callable[[int], object]


@dataclass(frozen=True)
class Outcome:
    """What one crosscoder found in one world; a recall is None when there is nothing to find."""

    variant: str
    features: int
    seed: int
    exclusive_recall: float | None
    """Of the concepts that one source alone holds."""
    shared_recall: float | None
    """Of the concepts that several sources hold, each by one feature."""
    split_recall: float | None
    """The same when different features may stand for different sources."""
    declared_recall: float | None
    """Of the exclusive concepts, by a feature whose group writes that source alone."""
    exclusive_by_third: tuple[float | None, ...]
    """Exclusive recall among the rare, middle and frequent third of all concepts."""
    shared_by_third: tuple[float | None, ...]
    by_norm: Calls
    """Calls by decoder norms."""
    by_group: Calls
    """Calls by what a feature's group writes."""
    false_exclusive_by_third: tuple[int, ...]
    """Features called exclusive by norm that match a concept more sources hold, by the third of that concept."""
    density_ratio: float | None
    """Firings of a feature called exclusive by norm against one called shared, at the median."""
    dead_share: float
    variance_explained: float
    """Mean over the sources, on held-out rows."""
    l0: float
    """Active features per held-out row."""
    by_verdict: Calls
    """Calls that the evidence supports."""
    by_q_value: Calls
    """Calls with a q-value of at most 0.1."""
    supported_recall: float | None
    """Of the exclusive concepts recovered, those recovered by a feature whose right call is supported."""

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return vars(self) | {key: vars(getattr(self, key)) for key in CALLS}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Outcome":
        """The inverse of `as_json`."""
        plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        return cls(**(plain | {key: Calls(**data[key]) for key in CALLS}))


@dataclass(frozen=True)
class Ground:
    """A world with its rows on disk."""

    seed: int
    world: World
    store: ActivationStore
    frequency: torch.Tensor
    """Share of the rows on which each concept fires [C]."""

    @classmethod
    @contextmanager
    def drawn(cls, world: World, rows: int, folder: Path) -> Iterator["Ground"]:
        """A world's rows for as long as they are needed; they are removed afterwards."""
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="rows-", dir=folder) as place:
            store, frequency = world.write(Path(place), rows=rows, held_out=HELD_OUT)
            yield cls(world.seed, world, store, frequency)


def trial(recipe: Recipe, ground: Ground, advance: Advance) -> Outcome:
    """Fit one crosscoder and hold it against the truth; `advance` hears of rows as they are trained on."""
    training = Training(recipe, ground.store)
    for batch in training.batches_left():
        training.run_step(batch)
        if training.step % STEPS == 0:
            advance(STEPS * recipe.training.batch)
    advance(training.steps % STEPS * recipe.training.batch)
    training.calibrate()
    return score(recipe, undamped(training.crosscoder), ground)


def score(recipe: Recipe, crosscoder: Crosscoder, ground: Ground) -> Outcome:
    """Hold a trained crosscoder against the truth about the sources it reconstructs."""
    tally = tally_of(crosscoder, ground.store)
    measures = [(one["measure"], one["value"]) for one in tally.measures()]
    explained = [value for name, value in measures if name == "variance_explained"]
    truth = Truth({source: ground.world.vectors[source] for source in crosscoder.targets}, ground.frequency)
    alive = tally.firings > 0
    found = Found(truth, {source: crosscoder.decoder(source).cpu() for source in crosscoder.targets}, alive)
    by_norm, by_group = found.norm_call(), found.declared_call()
    called = calls(crosscoder, ground.store, recipe.analysis, ground.store.path)
    supported = called.supported[alive]
    thirds = [truth.third(name) for name in THIRDS]
    return Outcome(
        recipe.crosscoder.variant,
        crosscoder.features,
        ground.seed,
        exclusive_recall=recall(found.recovered, truth.exclusive),
        shared_recall=recall(found.recovered, truth.shared),
        split_recall=recall(found.recovered_split, truth.shared),
        declared_recall=recall(found.recovered_as_called(by_group), truth.exclusive),
        exclusive_by_third=tuple(recall(found.recovered, truth.exclusive & third) for third in thirds),
        shared_by_third=tuple(recall(found.recovered, truth.shared & third) for third in thirds),
        by_norm=found.calls(by_norm),
        by_group=found.calls(by_group),
        false_exclusive_by_third=tuple(found.calls(by_norm, among=third).too_narrow for third in thirds),
        density_ratio=density_ratio(tally.firings[alive], by_norm),
        dead_share=1 - float(alive.float().mean()),
        variance_explained=sum(explained) / len(explained),
        l0=dict(measures)["l0"],
        by_verdict=found.calls(supported),
        by_q_value=found.calls(called.discovered[alive]),
        supported_recall=recall(found.recovered_as_called(supported), truth.exclusive & found.recovered),
    )


def tally_of(crosscoder: Crosscoder, store: ActivationStore) -> Tally:
    """Firings and errors on the held-out rows."""
    blocks = [block.rows for block in store.blocks("held_out", rows=BLOCK)]
    derived = [crosscoder.derived(rows) for rows in blocks]
    means = {source: torch.cat([rows[source] for rows in derived]).float().mean(dim=0) for source in crosscoder.targets}
    tally = Tally(crosscoder, means)
    for rows in blocks:
        tally.add(rows, crosscoder.encode(rows))
    return tally


def density_ratio(firings: torch.Tensor, call: torch.Tensor) -> float | None:
    """Median firings of features called for one source over that of features called for all; None without either."""
    one, all_of_them = firings[call.sum(dim=1) == 1].double(), firings[call.all(dim=1)].double()
    return float(one.median() / all_of_them.median()) if len(one) and len(all_of_them) else None
