"""Bench of the harvest: real text through the models, against the models alone on full batches."""

import contextlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

from trainer.bench.machine import Machine
from trainer.bench.prerequisites import DEMO, require_models, require_texts
from trainer.bench.repeats import Repeats
from trainer.bench.report import Report, shown
from trainer.errors import CorpusError
from trainer.harvest import Harvest
from trainer.models.source import Source, cut, load_source
from trainer.reading.activations import POOL_ROWS
from trainer.recipe.recipe import Recipe, load_recipe
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress

BARE_TOKENS = 16_384
"""Tokens per source that the bare forward pass reads in a round, at most."""


@dataclass(frozen=True)
class Round:
    """One pool of documents harvested, and the models alone right after it."""

    seconds: float
    """The pool's wall time."""
    phases: Mapping[str, float]
    """Seconds of it by kind of work: corpus, alignment, models, storing."""
    rows: int
    """Rows stored."""
    tokens: tuple[int, ...]
    """Tokens that each source read, padding left out."""
    bare_rates: tuple[float, ...]
    """Tokens per second of each source's bare forward pass."""

    @property
    def over_forward(self) -> float:
        """Tokens per second of the harvest over those of the bare forward pass, for the same mix of sources."""
        bare = sum(tokens / rate for tokens, rate in zip(self.tokens, self.bare_rates, strict=True))
        return bare / self.seconds

    def share(self, phase: str) -> float:
        """Part of the time that went into one kind of work."""
        return self.phases.get(phase, 0.0) / self.seconds


def bench_harvest(recipe_path: Path = DEMO, overrides: tuple[str, ...] = (), *, rounds: int = 5) -> Report:
    """Harvest pools of the recipe's text, each followed by the models alone.

    Raises RecipeError for a recipe without sources or corpus; SourceError or CorpusError when a model or text is not on
    this machine yet (nothing is fetched), or when there is too little text.
    """
    recipe = load_recipe(recipe_path, overrides)
    require_models(recipe, recipe_path)
    require_texts(recipe, recipe_path)
    sources = [cut(load_source(source), source.layer) for source in recipe.sources]
    machine = Machine()
    with tempfile.TemporaryDirectory(prefix="crossdiff-bench-") as folder:
        measured = measure(recipe, sources, Path(folder), rounds)
    return report(recipe, measured, machine)


def measure(recipe: Recipe, sources: list[Source], folder: Path, rounds: int) -> list[Round]:
    """Harvest into a folder until so many rounds are measured; the first pool, which opens the corpus, is left out."""
    endless = recipe.harvest.model_copy(update={"rows": (rounds + 2) * 4 * POOL_ROWS})
    recipe = recipe.model_copy(update={"harvest": endless})
    harvest = Harvest(recipe, sources, folder / "store", "bench")
    watch = _Watch(RunFolder(folder / "run"), harvest, rounds)
    with contextlib.suppress(_Enough):
        harvest.run(watch)
    if not watch.rounds:
        raise CorpusError(
            "The corpus is too small to measure with: one pool of documents takes it up. Add text to `corpus.mix`."
        )
    return watch.rounds


class _Enough(Exception):
    """Thrown through a harvest once enough of it was measured."""


class _Watch(Progress):
    """Progress of a harvest that times every pool, and runs the models alone between two pools."""

    def __init__(self, folder: RunFolder, harvest: Harvest, wanted: int) -> None:
        super().__init__(folder, "bench")
        self.rounds: list[Round] = []
        self._harvest, self._wanted = harvest, wanted
        self._pools = 0
        self._start_pool()

    def advance(self, done: int, **measures: float) -> None:
        """A pool is on record, or none yet when the harvest begins."""
        super().advance(done, **measures)
        parts = sorted(self._harvest.path.glob("sequences-*.parquet"))
        if parts:
            self._pools += 1
            self._end_pool(parts[-1])
        if len(self.rounds) == self._wanted:
            raise _Enough
        self._start_pool()

    def _start_pool(self) -> None:
        self._rows = _stored(self._harvest)
        self._phases = dict(self._harvest.seconds)
        self._began = time.perf_counter()

    def _end_pool(self, part: Path) -> None:
        seconds = time.perf_counter() - self._began
        harvest = self._harvest
        ids = token_ids(part, len(harvest.sources))
        rates = tuple(
            bare_rate(source, batches(one, harvest.corpus.context, harvest.recipe.harvest.batch_tokens))
            for source, one in zip(harvest.sources, ids, strict=True)
        )
        if self._pools == 1:
            return
        phases = {name: spent - self._phases.get(name, 0.0) for name, spent in harvest.seconds.items()}
        tokens = tuple(len(one) for one in ids)
        self.rounds.append(Round(seconds, phases, _stored(harvest) - self._rows, tokens, rates))


def token_ids(part: Path, sources: int) -> list[Tensor]:
    """All token ids of a part of the documents table, per source, sequence after sequence, int64 [tokens]."""
    rows = pq.read_table(part, columns=["token_ids"])["token_ids"].to_pylist()
    return [torch.tensor([token for row in rows for token in row[source]]) for source in range(sources)]


def batches(ids: Tensor, context: int, tokens: int) -> list[Tensor]:
    """Equal sequences in batches of about `tokens` tokens [sequences, context]; the rest is dropped."""
    context = min(context, len(ids))
    whole = ids[: min(len(ids), BARE_TOKENS) // context * context].reshape(-1, context)
    return list(whole.split(max(tokens // context, 1)))


def bare_rate(source: Source, ready: Sequence[Tensor]) -> float:
    """Tokens per second of a model's forward pass over token ids [sequences, positions] that are there already."""
    there = [ids.to(source.device) for ids in ready]
    began = time.perf_counter()
    with torch.inference_mode():
        for ids in there:
            out = source.body(input_ids=ids, use_cache=False).last_hidden_state
        out[-1, -1, 0].item()  # waits until a GPU is done
    return sum(ids.numel() for ids in there) / (time.perf_counter() - began)


def report(recipe: Recipe, rounds: list[Round], machine: Machine) -> Report:
    """The rounds as table and figures."""
    over = Repeats.of([one.over_forward for one in rounds])
    alignment = Repeats.of([one.share("alignment") for one in rounds])
    rows = Repeats.of([one.rows / one.seconds for one in rounds])
    table: list[tuple[str, Any]] = [
        ("harvest over bare forward pass", over),
        ("share of the time: reading text", Repeats.of([one.share("corpus") for one in rounds])),
        ("share of the time: tokenising and aligning", alignment),
        ("share of the time: models", Repeats.of([one.share("models") for one in rounds])),
        ("share of the time: storing", Repeats.of([one.share("storing") for one in rounds])),
        ("rows per second", rows),
        ("tokens per second, both ways, harvest", Repeats.of([sum(one.tokens) / one.seconds for one in rounds])),
    ]
    for index, source in enumerate(recipe.sources):
        rates = Repeats.of([one.bare_rates[index] for one in rounds])
        table.append((f"tokens per second, bare, {source.name}", rates))
    notes = (
        f"Median (least–most) of {len(rounds)} pools of documents. Torch uses {torch.get_num_threads()} threads.",
        f"bare: after each pool, the cut models alone read up to {BARE_TOKENS:,} of its tokens, without padding.",
        machine.note(),
    )
    figures = {"over_forward": over.median, "alignment_share": alignment.median, "rows_per_s": rows.median}
    lines = tuple((name, shown(value)) for name, value in table)
    return Report(f"Harvest of {recipe.name}", ("", "measured"), lines, figures, notes)


def _stored(harvest: Harvest) -> int:
    """Rows on disk, held-out ones counted in."""
    return harvest.writer.rows("train") + harvest.writer.rows("held_out")
