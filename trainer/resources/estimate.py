"""Foresight: memory, disk and time that every stage of a run will take, told from the recipe and the models' sizes.

Memory is what `peak memory` prints at the end of a stage. Constants were measured on the demo; docs/performance.md has
both side by side.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from trainer.crosscoder.groups import Group, differences, preset
from trainer.device import compute_dtype, pick_device
from trainer.evaluation.fidelity import SCORED
from trainer.kernels import int8_search
from trainer.models.memory import BITS
from trainer.models.shapes import ModelShape
from trainer.reading.activations import POOL_ROWS
from trainer.recipe.fitting import SourceRecipe
from trainer.recipe.recipe import Recipe
from trainer.store.batches import window_rows
from trainer.training.checkpoint import KEEP

PROCESS = 0.53e9
"""Bytes of a process that has torch, transformers and numba loaded and has run a product."""
TOKENIZER = 1350
"""Bytes per entry of a vocabulary: a tokenizer's tables."""
READING = 0.1e9
"""Bytes of a harvest's texts: what waits in the corpus's shuffle, duplicates, a pool's tokens."""
CODE = 0.1e9
"""Bytes of machine code that torch's CPU library keeps, until the process ends, for every shape of product it met."""
MEASURING = 0.18e9
"""Bytes that measuring a crosscoder takes beside the crosscoder: blocks of rows, their products, reconstructions."""
LOADED = 8
"""Bytes per weight of a trained crosscoder: its file, mapped, and what was made of it."""
STORED = 2
"""Bytes per activation that a harvest stores: bf16."""
PLACE = 12
"""Bytes per row beside its activations: document, position and byte end; and as many in the table of documents."""
FITTED = 16
"""Bytes per weight in training: itself, its gradient and two moments, fp32."""
CHECKPOINT = 12
"""Bytes per weight in a checkpoint: itself and two moments, which are copied once more while it is written."""
FIRING = 12
"""Bytes of a firing that waits on disk while features are analysed."""
CONTEXT_ROW = 11
"""Bytes in the results of a row of a kept context."""
RESULTS = 0.5e9
"""Bytes that the analysis needs beside what grows with models and dictionary: sums of products, tables, texts."""
LOGITS = 10
"""Bytes per token of the vocabulary and scored prediction while the models' loss is measured: four runs in bf16, and
some of them in fp32."""

TOKENS_PER_ROW = 1.1
"""Tokens that a model reads for one row; two tokenizers do not end everywhere together."""
MODELS_SHARE = 0.55
"""A harvest's arithmetic per second over that of a bare product: attention, norms, small matrices, text."""
PRODUCT_SHARE, SCREENED_SHARE = 0.9, 2.2
"""Speed of a step's encoder product and search over a bare product: as it is, and screened (docs/performance.md)."""
TRAFFIC = 40
"""Bytes that a step copies per weight: Adam, casts and norms, and in part the sums over active features."""
SHORT_SHARE = 0.6
"""As MODELS_SHARE, of models that read single sequences and predict, as evaluation makes them."""
ENCODES = 2.3
"""What the analysis costs, in encoder products of all rows."""
LOADING = 1.0e8
"""Bytes of a model's weights that are read and set up per second, its tokenizer included."""


@dataclass(frozen=True)
class Speed:
    """How fast this machine computes."""

    product: float
    """Multiplications and additions per second in a large product, at the precision of training."""
    copy: float
    """Bytes per second read and written again."""


@dataclass(frozen=True)
class StageCost:
    """What one stage takes."""

    stage: str
    memory: float
    """Bytes held at most, as the stage prints them at its end."""
    mapped: float
    """Those of them that are pages of files, which the system takes back when others need room."""
    disk: float
    """Bytes written, those included that are removed at the stage's end."""
    seconds: float | None
    """None where the machine's speed was not measured."""
    device: float = 0.0
    """Bytes held on a GPU; on a CPU they count as memory."""


def measure_speed(device: torch.device) -> Speed:
    """One large product and one copy, each a few times; takes about a second. The fastest counts.

    On a CPU one thread's processor time is taken and multiplied with the threads that torch uses, so that the figures
    are those of a machine on which nothing else runs.
    """
    dtype = compute_dtype(device)
    left, right = (torch.randn(rows, 1024, device=device).to(dtype) for rows in (1024, 4096))
    block = torch.zeros(2**26, dtype=torch.uint8, device=device)

    def product() -> None:
        torch.nn.functional.linear(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def copy() -> None:
        block.clone()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    threads = torch.get_num_threads()
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    try:
        torch.set_num_threads(1 if device.type == "cpu" else threads)
        seconds = [_fastest(action, clock) for action in (product, copy)]
    finally:
        torch.set_num_threads(threads)
    each = threads if device.type == "cpu" else 1
    return Speed(each * 2 * 1024 * 1024 * 4096 / seconds[0], 2 * block.numel() / seconds[1])


def _fastest(action: Callable[[], None], clock: Callable[[], float]) -> float:
    """Seconds of the fastest of several calls."""
    action()
    seconds = []
    for _ in range(5):
        began = clock()
        action()
        seconds.append(clock() - began)
    return min(seconds)


def needs(
    recipe: Recipe,
    shapes: Mapping[str, ModelShape],
    widths: Mapping[str, int],
    *,
    rows: int | None = None,
    speed: Speed | None = None,
) -> tuple[StageCost, ...]:
    """What every stage of a run will take, in order.

    `shapes` are those of the sources whose models are run, none for a store that something else wrote; `widths` those
    of all sources. `rows` are the store's training rows where they are known. Raises RecipeError for a variant that
    does not fit the sources.
    """
    return _Forecast(recipe, shapes, widths, rows, speed).needs()


@dataclass(frozen=True)
class _Forecast:
    recipe: Recipe
    shapes: Mapping[str, ModelShape]
    store_widths: Mapping[str, int]
    rows: int | None
    speed: Speed | None

    def needs(self) -> tuple[StageCost, ...]:
        harvest = (self.harvest(),) if self.shapes and self.recipe.corpus is not None else ()
        calibrate = () if self.recipe.calibration is None else (self.calibrate(),)
        return (*harvest, self.train(), self.evaluate(), *calibrate, self.analyse())

    @property
    def train_rows(self) -> int:
        return self.recipe.harvest.rows if self.rows is None else self.rows

    @property
    def kept_rows(self) -> float:
        """Rows that are in the store in the end, held-out ones included."""
        stream = self.recipe.harvest.stream
        return self.all_rows if stream is None else self.all_rows * self.recipe.harvest.stored_rows / self.train_rows

    @property
    def all_rows(self) -> float:
        held_out = self.recipe.corpus.held_out if self.recipe.corpus else 0.0
        return self.train_rows / (1 - held_out)

    @property
    def row_bytes(self) -> int:
        return STORED * sum(self.store_widths.values())

    @property
    def widths(self) -> Mapping[str, int]:
        made = differences(self.recipe.crosscoder, self.store_widths)
        return {name: self.store_widths[pair[0]] for name, pair in made.items()} or self.store_widths

    @property
    def groups(self) -> tuple[Group, ...]:
        return preset(self.recipe.crosscoder, self.store_widths)

    @property
    def parameters(self) -> int:
        return sum(
            group.features
            * (self._wide(group.reads) + self._wide(group.writes[:1] if group.tied else group.writes) + 1)
            for group in self.groups
        )

    @property
    def product(self) -> int:
        """Weights of the encoders: what every row is multiplied with."""
        return sum(group.features * self._wide(group.reads) for group in self.groups)

    @property
    def features(self) -> int:
        return self.groups[-1].stop

    def _wide(self, names: tuple[str, ...]) -> int:
        return sum(self.widths[name] for name in names)

    def _weights(self, count: Callable[[ModelShape], int]) -> float:
        """Bytes of all models' weights, of which `count` says how many there are."""
        return sum(count(self.shapes[one.name]) * _bytes_per_weight(one) for one in self.recipe.sources)

    def _tokenizers(self) -> float:
        return TOKENIZER * sum(shape.vocabulary for shape in self.shapes.values())

    def _seconds(self, arithmetic: float, share: float, *, loading: float = 0.0) -> float | None:
        return None if self.speed is None else 2 * arithmetic / (self.speed.product * share) + loading / LOADING

    def harvest(self) -> StageCost:
        corpus = self.recipe.corpus
        assert corpus is not None, "a harvest has a corpus"
        pool = POOL_ROWS * self.row_bytes * 3  # read, kept, on the way to the disk
        reading = self._weights(lambda shape: shape.kept) + READING + pool
        return StageCost(
            "harvest",
            memory=PROCESS + self._tokenizers() + max(reading, self._weights_while_loading()),
            mapped=0,
            disk=self.kept_rows * (self.row_bytes + 2 * PLACE),
            seconds=self._read(self.kept_rows),
        )

    def _read(self, rows: float) -> float | None:
        """Seconds that the models need for so many rows."""
        corpus = self.recipe.corpus
        assert corpus is not None, "a harvest has a corpus"
        each = sum(s.products + s.layers * s.width * corpus.context for s in self.shapes.values())
        loading = self._weights(lambda shape: shape.weights)
        return self._seconds(rows * TOKENS_PER_ROW * each, MODELS_SHARE, loading=loading)

    def _weights_while_loading(self) -> float:
        """Bytes when the last model is there whole and those before it are cut."""
        largest = 0.0
        before = 0.0
        for source in self.recipe.sources:
            shape, size = self.shapes[source.name], _bytes_per_weight(source)
            largest = max(largest, before + shape.weights * size)
            before += shape.kept * size
        return largest

    def train(self) -> StageCost:
        training = self.recipe.training
        steps = self.train_rows // training.batch * training.epochs
        window = self.row_bytes * min(self.train_rows, window_rows(self.row_bytes))
        batch = training.batch * (12 * sum(self.store_widths.values()) + 24 * self.recipe.crosscoder.sparsity.k)
        dense = self.recipe.crosscoder.sparsity.kind in ("l1", "jumprelu", "topk")
        batch += training.batch * self.features * 16 if dense else 0
        low = STORED * self.product
        held = FITTED * self.parameters + low + batch
        on_cpu = pick_device(training.device).type == "cpu"
        fitted = StageCost(
            "train",
            memory=PROCESS + CHECKPOINT * self.parameters + window + (held + CODE if on_cpu else 0),
            device=0 if on_cpu else held,
            mapped=window,
            disk=(KEEP + 1) * CHECKPOINT * self.parameters + 4 * self.parameters,
            seconds=self._steps(steps),
        )
        stream = self.recipe.harvest.stream
        if stream is None or not self.shapes or self.recipe.corpus is None:
            return fitted
        # The rows beyond the sample come from the models, which are in memory beside the buffer.
        buffer = self.row_bytes * min(stream.buffer, self.train_rows)
        harvest = self.harvest()
        return StageCost(
            "train",
            memory=fitted.memory - window + harvest.memory - PROCESS + 1.5 * buffer,
            device=fitted.device,
            mapped=0,
            disk=fitted.disk + (KEEP + 1) * buffer / 2,
            seconds=self._total(fitted.seconds, self._read(self.train_rows - self.recipe.harvest.stored_rows)),
        )

    def _steps(self, steps: int) -> float | None:
        """Seconds of so many steps: the product of every row, and what goes over all weights once in a step."""
        share = SCREENED_SHARE if self._screened else PRODUCT_SHARE
        products = self._seconds(steps * self.recipe.training.batch * self.product, share)
        weights = TRAFFIC * self.parameters
        return None if self.speed is None else self._total(products, steps * weights / self.speed.copy)

    @property
    def _screened(self) -> bool:
        training = self.recipe.training
        may = self.recipe.crosscoder.sparsity.kind == "batch_topk" and training.precision == "auto"
        fast = pick_device(training.device).type == "cpu" and int8_search.shape() is not None
        return may and fast and self.product >= int8_search.WORTH

    def evaluate(self) -> StageCost:
        logits = max((shape.vocabulary for shape in self.shapes.values()), default=0) * SCORED * LOGITS
        models = self._weights(lambda shape: shape.weights)
        corpus, baselines = self.recipe.corpus, self.recipe.baselines
        context = corpus.context if corpus else 0
        reads = 4 * self.recipe.evaluation.sequences + (baselines.sequences if baselines.divergence else 0)
        each = sum(shape.all_products for shape in self.shapes.values())
        held_out = self.kept_rows * (1 - self.train_rows / self.all_rows)
        return StageCost(
            "evaluate",
            memory=PROCESS + CODE + self._tokenizers() + models + logits + MEASURING + LOADED * self.parameters,
            mapped=0,
            disk=0,
            seconds=self._total(
                self._seconds(held_out * self.product, 1.0),
                self._seconds(reads * context * each, SHORT_SHARE, loading=models),
            ),
        )

    def analyse(self) -> StageCost:
        return self._analysis("analyse", self.kept_rows, models=True)

    def _analysis(self, stage: str, rows: float, *, models: bool) -> StageCost:
        """One encoder pass, moments of features and of decoys, and the readouts."""
        recipe = self.recipe.analysis
        wide = sum(self.widths.values())
        decoys = recipe.decoys * len(self.widths)
        moments = 2 * 4 * (self.features + decoys) * wide + 2 * 3 * 8 * max(self.widths.values()) ** 2 * len(
            self.widths
        )
        loaded = self._weights(lambda shape: shape.weights) + self._tokenizers() if models else 0.0
        heads = sum(shape.vocabulary * shape.width for shape in self.shapes.values()) if models else 0
        contexts = recipe.contexts.top + 5 * recipe.contexts.per_quantile
        firings = rows * self.recipe.crosscoder.sparsity.k
        return StageCost(
            stage,
            memory=PROCESS + CODE + RESULTS + loaded + moments + LOADED * self.parameters,
            mapped=0,
            disk=firings * FIRING + self.features * contexts * recipe.contexts.window * CONTEXT_ROW,
            seconds=self._total(
                self._seconds(rows * self.product * ENCODES, 1.0, loading=loaded),
                self._seconds(self.features * heads, 1.0),
            ),
        )

    def calibrate(self) -> StageCost:
        """Two trainings and two analyses without text, one after the other, on rows written for them."""
        assert self.recipe.calibration is not None, "a run that is calibrated says how"
        rows = min(self.recipe.calibration.rows, self.train_rows)
        alone = _Forecast(self.recipe, {}, self.store_widths, rows, self.speed)
        fit, judged = alone.train(), alone._analysis("calibrate", rows, models=False)
        twice = self._total(fit.seconds, judged.seconds, fit.seconds, judged.seconds)
        disk = rows * self.row_bytes + max(fit.disk, judged.disk)
        # The C library keeps much of what the training took while its outcome is judged.
        memory = fit.memory + judged.memory - PROCESS
        return StageCost("calibrate", memory, max(fit.mapped, judged.mapped), disk, twice)

    @staticmethod
    def _total(*seconds: float | None) -> float | None:
        known = [one for one in seconds if one is not None]
        return sum(known) if len(known) == len(seconds) else None


def _bytes_per_weight(source: SourceRecipe) -> float:
    if source.quantization is not None:
        return BITS[source.quantization] / 8
    if source.dtype == "auto":
        return compute_dtype(pick_device(source.device)).itemsize
    return 4 if source.dtype == "float32" else 2
