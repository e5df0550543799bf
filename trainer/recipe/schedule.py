"""The rule that chooses a training's settings where its recipe leaves them open.

Written with F features, k active features per row, N training rows and sources of mean width W, an average feature
fires on N k / F rows of one pass. Everything but the learning rate follows from that: how many passes, how many rows
per step, and after how many silent rows a feature counts as dead. docs/training.md has the measurements behind the
constants.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trainer.recipe.recipe import Recipe

FIRINGS = 3000
"""Times that an average feature should fire in a whole training."""
MOST_EPOCHS = 4
"""Passes over the rows at most; more would fit the noise of few rows."""
FIRINGS_PER_STEP = 2
"""Times that an average feature should fire in one step."""
BATCHES = (64, 4096)
"""Least and most rows per step."""
STEPS = (1000, 30_000)
"""Steps below which the batch shrinks, and above which it grows, as far as BATCHES allow."""
STEP_LENGTH = 0.075
"""Distance that Adam moves a direction of unit norm per step at full learning rate, if every coordinate moves."""
SILENT_FIRINGS = 64
"""A feature is dead when an average one would have fired this many times since it last did."""
SILENT_STEPS = 8
"""Steps that a feature must have been silent for at least."""


@dataclass(frozen=True)
class Schedule:
    """How long, how fast and in what steps a crosscoder is trained."""

    epochs: int
    """Passes over the rows."""
    batch: int
    """Rows per step."""
    learning_rate: float
    dead_after_rows: int
    """A feature is dead if it has not fired for this many rows."""

    @classmethod
    def of(cls, recipe: Recipe, rows: int, widths: Mapping[str, int]) -> "Schedule":
        """The settings that the recipe states, and those that follow from it by the rule of this module.

        `rows` are the training rows that are stored, where a recipe streams those that it names; `widths` are the
        sources' [coordinates].
        """
        training, dead = recipe.training, recipe.crosscoder.dead_features
        streams = recipe.harvest.stream is not None
        rows = max(1, recipe.harvest.rows if streams else rows)
        rows_per_firing = recipe.crosscoder.size / recipe.crosscoder.sparsity.k
        epochs = training.epochs or (1 if streams else _epochs(rows, rows_per_firing))
        batch = training.batch or _batch(rows, epochs, rows_per_firing)
        return cls(
            epochs,
            batch,
            training.learning_rate or learning_rate(widths),
            dead.after_rows or max(round(SILENT_FIRINGS * rows_per_firing), SILENT_STEPS * batch),
        )

    def stated_in(self, recipe: Recipe) -> Recipe:
        """The same recipe with these settings stated."""
        dead = recipe.crosscoder.dead_features.model_copy(update={"after_rows": self.dead_after_rows})
        training = {"epochs": self.epochs, "batch": self.batch, "learning_rate": self.learning_rate}
        return recipe.model_copy(
            update={
                "crosscoder": recipe.crosscoder.model_copy(update={"dead_features": dead}),
                "training": recipe.training.model_copy(update=training),
            }
        )


def _epochs(rows: int, rows_per_firing: float) -> int:
    """Passes after which an average feature has fired FIRINGS times."""
    return min(max(1, round(FIRINGS * rows_per_firing / rows)), MOST_EPOCHS)


def _batch(rows: int, epochs: int, rows_per_firing: float) -> int:
    """The power of two nearest to FIRINGS_PER_STEP firings of an average feature, for a number of STEPS.

    Fewer rows than one batch give a batch of them all.
    """
    fewest, most = STEPS
    wanted = FIRINGS_PER_STEP * rows_per_firing
    wanted = min(max(wanted, rows * epochs / most), rows * epochs / fewest)
    smallest, largest = BATCHES
    return min(1 << round(math.log2(min(max(wanted, smallest), largest))), rows)


def learning_rate(widths: Mapping[str, int]) -> float:
    """STEP_LENGTH divided among the coordinates of a direction of unit norm, to two digits.

    Adam moves every coordinate by about the learning rate, and so a direction of W coordinates by sqrt(W) times that.
    """
    mean_width = sum(widths.values()) / len(widths)
    return float(f"{STEP_LENGTH / math.sqrt(mean_width):.1e}")
