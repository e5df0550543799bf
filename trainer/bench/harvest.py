"""Times a harvest of real text against the bare forward passes of its models on full batches."""

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
from trainer.bench.report import Report, formatted
from trainer.errors import CorpusError
from trainer.harvest import Harvest
from trainer.models.source import Source, load_source, truncate_after
from trainer.reading.activations import POOL_ROWS
from trainer.recipe.recipe import Recipe, load_recipe
from trainer.run.folder import RunFolder
from trainer.run.progress import Progress

BARE_TOKENS = 16_384
"""Most tokens per source that the bare forward pass reads in a round."""


@dataclass(frozen=True)
class Round:
    """One harvested pool of documents, and the bare forward passes right after it."""

    seconds: float
    """The pool's wall time."""
    phases: Mapping[str, float]
    """Its seconds by kind of work: corpus, alignment, models, storing."""
    rows: int
    """Rows stored."""
    tokens: tuple[int, ...]
    """Tokens that each source read, without padding."""
    bare_rates: tuple[float, ...]
    """Tokens per second of each source's bare forward pass."""

    @property
    def over_forward(self) -> float:
        """Throughput of the harvest over that of the bare forward passes, for the same tokens of every source."""
        bare = sum(tokens / rate for tokens, rate in zip(self.tokens, self.bare_rates, strict=True))
        return bare / self.seconds

    def share(self, phase: str) -> float:
        """Share of the time spent on one kind of work."""
        return self.phases.get(phase, 0.0) / self.seconds


def bench_harvest(recipe_path: Path = DEMO, overrides: tuple[str, ...] = (), *, rounds: int = 5) -> Report:
    """Harvest pools of the recipe's text, each followed by the bare forward passes of its models.

    Raises RecipeError for a recipe without sources or corpus; SourceError or CorpusError when a model or text is not on
    this machine yet (nothing is fetched), or when there is too little text.
    """
    recipe = load_recipe(recipe_path, overrides)
    require_models(recipe, recipe_path)
    require_texts(recipe, recipe_path)
    sources = [truncate_after(load_source(source), source.layer) for source in recipe.sources]
    machine = Machine()
    with tempfile.TemporaryDirectory(prefix="crossdiff-bench-") as folder:
        measured = measure(recipe, sources, Path(folder), rounds)
    return report(recipe, measured, machine)


def measure(recipe: Recipe, sources: list[Source], folder: Path, rounds: int) -> list[Round]:
    """Harvests into a folder until `rounds` pools are measured; the first, which opens the corpus, does not count.

    Raises CorpusError when the corpus fits one pool.
    """
    endless = recipe.harvest.model_copy(update={"rows": (rounds + 2) * 4 * POOL_ROWS})
    recipe = recipe.model_copy(update={"harvest": endless})
    harvest = Harvest(recipe, sources, folder / "store", "bench")
    timer = _PoolTimer(RunFolder(folder / "run"), harvest, rounds)
    with contextlib.suppress(_EnoughRounds):
        harvest.run(timer)
    if not timer.rounds:
        raise CorpusError(
            "The corpus is too small to measure with: one pool of documents takes it up. Add text to `corpus.mix`."
        )
    return timer.rounds


class _EnoughRounds(Exception):
    """Ends a harvest once enough rounds are measured."""


class _PoolTimer(Progress):
    """Progress of a harvest that times every pool and runs the bare forward passes between pools."""

    def __init__(self, folder: RunFolder, harvest: Harvest, rounds: int) -> None:
        super().__init__(folder, "bench")
        self.rounds: list[Round] = []
        self._harvest, self._wanted_rounds = harvest, rounds
        self._pools = 0
        self._start_pool()

    def advance(self, done: int, **measures: float) -> None:
        """Called after every pool, and once before the first."""
        super().advance(done, **measures)
        parts = sorted(self._harvest.path.glob("sequences-*.parquet"))
        if parts:
            self._pools += 1
            self._end_pool(parts[-1])
        if len(self.rounds) == self._wanted_rounds:
            raise _EnoughRounds
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
            bare_rate(source, full_batches(source_ids, harvest.corpus.context, harvest.recipe.harvest.batch_tokens))
            for source, source_ids in zip(harvest.sources, ids, strict=True)
        )
        if self._pools == 1:
            return
        phases = {name: spent - self._phases.get(name, 0.0) for name, spent in harvest.seconds.items()}
        tokens = tuple(len(source_ids) for source_ids in ids)
        self.rounds.append(Round(seconds, phases, _stored(harvest) - self._rows, tokens, rates))


def token_ids(part: Path, sources: int) -> list[Tensor]:
    """Token ids of a part of the table of sequences, concatenated per source, int64 [tokens]."""
    rows = pq.read_table(part, columns=["token_ids"])["token_ids"].to_pylist()
    return [torch.tensor([token for row in rows for token in row[source]]) for source in range(sources)]


def full_batches(ids: Tensor, context: int, tokens: int) -> list[Tensor]:
    """Cuts ids [tokens] into batches [sequences, context] of about `tokens` tokens; drops the remainder."""
    context = min(context, len(ids))
    whole = ids[: min(len(ids), BARE_TOKENS) // context * context].reshape(-1, context)
    return list(whole.split(max(tokens // context, 1)))


def bare_rate(source: Source, batches: Sequence[Tensor]) -> float:
    """Tokens per second of a model's forward pass over batches of token ids [sequences, positions]."""
    on_device = [ids.to(source.device) for ids in batches]
    began = time.perf_counter()
    with torch.inference_mode():
        for ids in on_device:
            out = source.body(input_ids=ids, use_cache=False).last_hidden_state
        out[-1, -1, 0].item()  # synchronises with a GPU
    return sum(ids.numel() for ids in on_device) / (time.perf_counter() - began)


def report(recipe: Recipe, rounds: list[Round], machine: Machine) -> Report:
    """The rounds as a table and figures."""
    over = Repeats.from_values([pool.over_forward for pool in rounds])
    alignment = Repeats.from_values([pool.share("alignment") for pool in rounds])
    rows = Repeats.from_values([pool.rows / pool.seconds for pool in rounds])
    table: list[tuple[str, Any]] = [
        ("harvest over bare forward pass", over),
        ("share of the time: reading text", Repeats.from_values([pool.share("corpus") for pool in rounds])),
        ("share of the time: tokenising and aligning", alignment),
        ("share of the time: models", Repeats.from_values([pool.share("models") for pool in rounds])),
        ("share of the time: storing", Repeats.from_values([pool.share("storing") for pool in rounds])),
        ("rows per second", rows),
        (
            "tokens per second, all models, harvest",
            Repeats.from_values([sum(pool.tokens) / pool.seconds for pool in rounds]),
        ),
    ]
    for index, source in enumerate(recipe.sources):
        rates = Repeats.from_values([pool.bare_rates[index] for pool in rounds])
        table.append((f"tokens per second, bare, {source.name}", rates))
    notes = (
        f"Median (least–most) of {len(rounds)} pools of documents. Torch uses {torch.get_num_threads()} threads.",
        f"bare: after each pool, the truncated models read up to {BARE_TOKENS:,} of its tokens without padding.",
        machine.note(),
    )
    figures = {"over_forward": over.median, "alignment_share": alignment.median, "rows_per_s": rows.median}
    lines = tuple((name, formatted(value)) for name, value in table)
    return Report(f"Harvest of {recipe.name}", ("", "measured"), lines, figures, notes)


def _stored(harvest: Harvest) -> int:
    """Rows on disk, including held-out ones."""
    return harvest.writer.rows("train") + harvest.writer.rows("held_out")
