"""Compares each model of a recipe with copies of itself, where every claim is false, and counts the supported ones."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
from scipy.stats import binomtest

from trainer.bench.machine import Machine
from trainer.bench.model_copies import copy_with_fewer_merges, rounded_copy
from trainer.bench.report import Report
from trainer.errors import UsageError
from trainer.models.files import ModelFiles, find_model
from trainer.pipeline.run import Run
from trainer.recipe.fitting import SourceRecipe
from trainer.recipe.recipe import Recipe, load_recipe, parse_recipe
from trainer.run.folder import RunFolder, home
from trainer.run.stages import STAGES

KINDS: dict[str, tuple[str, Callable[[ModelFiles, Path], Path]]] = {
    "8bit": ("its weights rounded to 8 bits", lambda files, folder: rounded_copy(files, folder, bits=8)),
    "4bit": ("its weights rounded to 4 bits", lambda files, folder: rounded_copy(files, folder, bits=4)),
    "merges": (
        "half of the merges of its tokenizer",
        lambda files, folder: copy_with_fewer_merges(files, folder, share=0.5),
    ),
}
"""What a copy has, and how it is made, by kind."""
HEAD = ("null", "owner", "told linearly", "claims", "judged", "supported", "95 % interval", "refuted")
LEGEND = (
    "Each model against a copy of itself, by the recipe's own settings; no claim is true. told linearly: share of the "
    "owner's variance that an affine map from the other explains. judged: claims with a probe ratio and an excess."
)


class NullCount(NamedTuple):
    """Verdicts on one owner's claims in one null."""

    null: str
    owner: str
    told: float | None
    """Share of its variance that the other tells linearly; None with too few groups of documents to say."""
    claims: int
    judged: int
    supported: int
    refuted: int

    def as_row(self) -> tuple[str, ...]:
        """A line of the table."""
        interval = binomtest(self.supported, self.claims).proportion_ci() if self.claims else None
        share = "–" if interval is None else f"{100 * interval.low:.1f}–{100 * interval.high:.1f} %"
        counts = [f"{value:,}" for value in (self.claims, self.judged, self.supported)]
        return (
            self.null,
            self.owner,
            "–" if self.told is None else f"{self.told:.3f}",
            *counts,
            share,
            f"{self.refuted:,}",
        )


def bench_nulls(
    recipe_path: Path, overrides: tuple[str, ...] = (), *, kinds: Sequence[str] = (), sources: Sequence[str] = ()
) -> Report:
    """Run every null of every source; the runs stay in the home folder, to be browsed.

    Raises UsageError for an unknown kind or source, CrossdiffError for errors that the user can correct.
    """
    machine, recipe = Machine(), load_recipe(recipe_path, overrides)
    known = [source.name for source in recipe.sources]
    for given, there, what in ((kinds, list(KINDS), "null"), (sources, known, "source")):
        for name in given:
            if name not in there:
                raise UsageError(f"No {what} is named {name!r}. There are {', '.join(there)}.")
    chosen = [source for source in recipe.sources if source.name in (sources or known)]
    counts = [count for source in chosen for kind in kinds or KINDS for count in _null(recipe, source, kind)]
    notes = [f"{kind}: the other is the model with {about}." for kind, (about, _) in KINDS.items()]
    return Report(
        "Models against copies of themselves",
        HEAD,
        tuple(count.as_row() for count in counts),
        {"nulls": [count._asdict() for count in counts]},
        (LEGEND, *notes, machine.note()),
    )


def _null(recipe: Recipe, source: SourceRecipe, kind: str) -> Iterator[NullCount]:
    """Compare one source with one copy of it; gives the counts of either owner."""
    _, make = KINDS[kind]
    files = find_model(source.name, source.model, source.revision)
    copy = make(files, home() / "models" / f"{files.folder.name}-{kind}")
    run = Run(null_recipe(recipe, source, kind, copy))
    run.execute(STAGES)
    yield from _counts(f"{source.name}, {kind}", run.folder)


def null_recipe(recipe: Recipe, source: SourceRecipe, kind: str, copy: Path) -> Recipe:
    """A recipe like another that compares one of its sources with a copy of that source's model."""
    data = recipe.model_dump(mode="json", exclude={"sources", "calibration", "sweep", "imported", "name", "baselines"})
    original = source.model_dump(mode="json")
    twin = original | {"name": f"{source.name}-{kind}", "model": str(copy), "revision": None}
    skipped: dict[str, Any] = {"lens": False, "divergence": False}
    whole = data | {"name": f"null-{source.name}-{kind}", "sources": [original, twin], "baselines": skipped}
    return parse_recipe(whole, origin="the null")


def _counts(null: str, folder: RunFolder) -> Iterator[NullCount]:
    """Verdicts by owner, from the published results."""
    with duckdb.connect(str(folder.results()), read_only=True) as results:
        names = [name for (name,) in results.sql("select name from source order by source").fetchall()]
        for owner in names:
            told = results.execute(
                "select max(p.r2) from predictability p join source s on p.source = s.source "
                "where s.name = ? and p.corpus is null and p.language is null and p.band is null",
                [owner],
            ).fetchone()
            counts = results.execute(
                "select count(*), count(*) filter (probe_ratio is not null and excess is not null), "
                "count(*) filter (verdict = 'supported'), count(*) filter (verdict = 'refuted') "
                "from feature where owner = ? and verdict in ('supported', 'refuted', 'undecided')",
                [owner],
            ).fetchone()
            assert told is not None, "an aggregate gives one row"
            assert counts is not None, "an aggregate gives one row"
            yield NullCount(null, owner, told[0], *counts)
