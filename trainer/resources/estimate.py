"""Estimates memory, disk and time of every stage of a run from the recipe and the models' sizes.

Memory is what a stage prints as `peak memory` at its end. Constants were measured on the demo; docs/performance.md
compares estimates and measurements.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.analysis.claims.other_layers import DEPTHS, ROWS
from trainer.device import compute_dtype, pick_device
from trainer.evaluation.fidelity import SCORED
from trainer.kernels import int8_search
from trainer.models.memory import QUANTIZED_BITS
from trainer.models.shapes import ModelShape
from trainer.reading.activations import POOL_ROWS
from trainer.recipe.fitting import SourceRecipe
from trainer.recipe.recipe import Recipe
from trainer.recipe.schedule import Schedule
from trainer.resources.dictionary_size import DictionarySize
from trainer.resources.speed import MachineSpeed
from trainer.run.folder import RunFolder
from trainer.store.batches import window_rows
from trainer.training.checkpoint import KEEP
from trainer.training.ensemble import members

PROCESS_BYTES = 0.53e9
"""Bytes of a process with torch, transformers and numba loaded, after a first matrix product."""
TOKENIZER_BYTES = 1350
"""Bytes of a tokenizer per entry of its vocabulary."""
CORPUS_BYTES = 0.1e9
"""Bytes of a harvest's texts: the corpus's shuffle buffer, hashes of duplicates, a pool's tokens."""
KERNEL_CACHE_BYTES = 0.1e9
"""Bytes of machine code that oneDNN keeps for the shapes of matrix products it has compiled."""
EVALUATION_BYTES = 0.18e9
"""Bytes of an evaluation beside the crosscoder: blocks of rows, pre-activations, reconstructions."""
LOADED_BYTES = 8
"""Bytes per weight of a loaded crosscoder: its mapped file and the tensors derived from it."""
ACTIVATION_BYTES = 2
"""Bytes per stored activation: bf16."""
ROW_POSITION_BYTES = 12
"""Bytes per row for sequence, position and byte end; the table of sequences takes as many again."""
TRAINING_BYTES = 16
"""Bytes per weight in training: weight, gradient and Adam's two moments, fp32."""
WEIGHT_BYTES = 4
"""Bytes per weight of a saved or loaded crosscoder, fp32."""
CHECKPOINT_BYTES = 12
"""Bytes per weight in a checkpoint: weight and Adam's two moments, which are copied while it is written."""
FIRING_BYTES = 12
"""Bytes per firing of the spool on disk during the analysis."""
CONTEXT_ROW_BYTES = 11
"""Bytes in the results per row of a stored context."""
ANALYSIS_BYTES = 0.5e9
"""Bytes of the analysis that do not grow with models and dictionary: second moments, tables, texts."""
LOGIT_BYTES = 10
"""Bytes of logits per vocabulary entry and scored prediction: four runs in bf16, and some of them in fp32."""

TOKENS_PER_ROW = 1.1
"""Tokens that a model reads per row; not every token ends at an anchor."""
HARVEST_SHARE = 0.55
"""A harvest's arithmetic throughput over that of a bare product; lower by attention, norms, small matrices, text."""
DENSE_SHARE, INT8_SHARE = 0.9, 2.2
"""Speed of a step's encoder product and search over a bare product: dense, and by int8 search (docs/performance.md)."""
STEP_TRAFFIC_BYTES = 40
"""Memory traffic of a step in bytes per weight: Adam, casts, norms, and part of the sums over active features."""
EVALUATION_SHARE = 0.6
"""As HARVEST_SHARE, for whole models on single sequences, as in evaluation."""
ANALYSIS_ENCODES = 2.3
"""Arithmetic of the analysis, in encoder products of all rows."""
LOADING_BYTES_PER_S = 1.0e8
"""Bytes of weights loaded per second, including the tokenizer."""


@dataclass(frozen=True)
class Least:
    """Bytes that a stage holds or writes whatever the machine: weights, their optimiser state, stored activations."""

    memory: float = 0.0
    disk: float = 0.0
    device: float = 0.0


@dataclass(frozen=True)
class StageCost:
    """Memory, disk and time of one stage."""

    stage: str
    memory: float
    """Peak bytes, as the stage prints them at its end."""
    mapped: float
    """Bytes of `memory` that are mapped files, which the system reclaims under pressure."""
    disk: float
    """Bytes written, including files removed at the stage's end."""
    seconds: float | None
    """None where the machine's speed was not measured."""
    device: float = 0.0
    """Peak bytes on a GPU; on a CPU they count as `memory`."""
    least: Least = Least()
    """What the stage cannot do without, by arithmetic alone."""

    def by_arithmetic(self) -> "StageCost":
        """The stage with nothing but that."""
        return StageCost(self.stage, self.least.memory, 0, self.least.disk, None, self.least.device)


def side_by_side(costs: Sequence[StageCost]) -> StageCost:
    """Cost of at least one training in one process, all reading the same batches; time unknown for several."""
    first, *others = costs
    for other in others:
        memory = first.memory + other.memory - other.mapped - PROCESS_BYTES
        parts = ((one.memory, one.disk, one.device) for one in (first.least, other.least))
        least = Least(*(one + another for one, another in zip(*parts, strict=True)))
        disk, device = first.disk + other.disk, first.device + other.device
        first = StageCost(first.stage, memory, first.mapped, disk, None, device, least)
    return first


def stage_costs(
    recipe: Recipe,
    shapes: Mapping[str, ModelShape],
    widths: Mapping[str, int],
    *,
    rows: int | None = None,
    speed: MachineSpeed | None = None,
) -> tuple[StageCost, ...]:
    """Estimate every stage of a run, in order.

    `shapes` are those of the sources whose models are run, empty for an imported store; `widths` those of all sources.
    `rows` are the store's training rows where they are known. Raises RecipeError for a variant that
    does not fit the sources.
    """
    return _Estimator(recipe, shapes, widths, rows, speed).stage_costs()


@dataclass(frozen=True)
class _Estimator:
    recipe: Recipe
    shapes: Mapping[str, ModelShape]
    store_widths: Mapping[str, int]
    rows: int | None
    speed: MachineSpeed | None

    def stage_costs(self) -> tuple[StageCost, ...]:
        harvest = (self.harvest(),) if self.shapes and self.recipe.corpus is not None else ()
        calibrate = () if self.recipe.calibration is None else (self.calibrate(),)
        return (*harvest, self.train(), self.evaluate(), *calibrate, self.analyse())

    @property
    def train_rows(self) -> int:
        return self.recipe.harvest.rows if self.rows is None else self.rows

    @property
    def schedule(self) -> Schedule:
        return Schedule.of(self.recipe, self.train_rows, self.store_widths)

    @property
    def kept_rows(self) -> float:
        """Rows of the finished store, including held-out ones."""
        stream = self.recipe.harvest.stream
        return self.all_rows if stream is None else self.all_rows * self.recipe.harvest.stored_rows / self.train_rows

    @property
    def all_rows(self) -> float:
        held_out = self.recipe.corpus.held_out if self.recipe.corpus else 0.0
        return self.train_rows / (1 - held_out)

    @property
    def row_bytes(self) -> int:
        return ACTIVATION_BYTES * sum(self.store_widths.values())

    @property
    def dictionary(self) -> DictionarySize:
        return DictionarySize(self.recipe.crosscoder, self.store_widths)

    def _weights(self, count: Callable[[ModelShape], int]) -> float:
        """Bytes of all models' weights; `count` gives the number of weights of a model."""
        return sum(count(self.shapes[one.name]) * _bytes_per_weight(one) for one in self.recipe.sources)

    def _weights_on_cpu(self, count: Callable[[ModelShape], int]) -> float:
        """As `_weights`, of the models that are not on a GPU."""
        return sum(
            count(self.shapes[one.name]) * _bytes_per_weight(one)
            for one in self.recipe.sources
            if one.name in self.shapes and pick_device(one.device).type == "cpu"
        )

    def _least(self, held: float, disk: float) -> Least:
        """Bytes held where the crosscoder is, in memory or on a GPU, and bytes written."""
        on_cpu = pick_device(self.recipe.training.device).type == "cpu"
        return Least(held if on_cpu else 0, disk, 0 if on_cpu else held)

    def _tokenizers(self) -> float:
        return TOKENIZER_BYTES * sum(shape.vocabulary for shape in self.shapes.values())

    def _seconds(self, arithmetic: float, share: float, *, loading: float = 0.0) -> float | None:
        return (
            None
            if self.speed is None
            else 2 * arithmetic / (self.speed.product * share) + loading / LOADING_BYTES_PER_S
        )

    def harvest(self) -> StageCost:
        corpus = self.recipe.corpus
        assert corpus is not None, "a harvest has a corpus"
        pool = POOL_ROWS * self.row_bytes * 3  # being read, kept, being written
        reading = self._weights(lambda shape: shape.kept_parameters) + CORPUS_BYTES + pool
        return StageCost(
            "harvest",
            memory=PROCESS_BYTES + self._tokenizers() + max(reading, self._weights_while_loading()),
            mapped=0,
            disk=self.kept_rows * (self.row_bytes + 2 * ROW_POSITION_BYTES),
            seconds=self._model_seconds(self.kept_rows),
            least=Least(self._weights_on_cpu(lambda shape: shape.kept_parameters), self.kept_rows * self.row_bytes),
        )

    def _model_seconds(self, rows: float) -> float | None:
        """Seconds of the models for `rows` rows, including loading."""
        corpus = self.recipe.corpus
        assert corpus is not None, "a harvest has a corpus"
        each = sum(s.multiplications + s.layers * s.width * corpus.context for s in self.shapes.values())
        loading = self._weights(lambda shape: shape.parameters)
        return self._seconds(rows * TOKENS_PER_ROW * each, HARVEST_SHARE, loading=loading)

    def _weights_while_loading(self) -> float:
        """Peak bytes of weights while one model is loaded whole and those before it are truncated."""
        largest = 0.0
        before = 0.0
        for source in self.recipe.sources:
            shape, size = self.shapes[source.name], _bytes_per_weight(source)
            largest = max(largest, before + shape.parameters * size)
            before += shape.kept_parameters * size
        return largest

    def train(self) -> StageCost:
        """The crosscoder's training, and those of its residual dictionaries side by side with it."""
        return self._together([self.fitted(), *(one.fitted() for one in self._members())])

    def _members(self) -> list["_Estimator"]:
        """The trainings of residual dictionaries beside the crosscoder."""
        settled = self.schedule.stated_in(self.recipe)
        return [replace(self, recipe=recipe) for recipe, _ in members(settled, RunFolder(Path()))]

    def _together(self, costs: Sequence[StageCost]) -> StageCost:
        return replace(side_by_side(costs), seconds=self._total(*(cost.seconds for cost in costs)))

    def fitted(self) -> StageCost:
        """One training by itself."""
        schedule = self.schedule
        steps = self.train_rows // schedule.batch * schedule.epochs
        window = self.row_bytes * min(self.train_rows, window_rows(self.row_bytes))
        batch = schedule.batch * (12 * sum(self.store_widths.values()) + 24 * self.dictionary.active)
        dense = self.recipe.crosscoder.sparsity.kind in ("l1", "jumprelu", "topk")
        batch += schedule.batch * self.dictionary.features * 16 if dense else 0
        low, rows = ACTIVATION_BYTES * self.dictionary.product, 4 * schedule.batch * sum(self.store_widths.values())
        held = TRAINING_BYTES * self.dictionary.parameters + low + batch
        on_cpu = pick_device(self.recipe.training.device).type == "cpu"
        fitted = StageCost(
            "train",
            memory=PROCESS_BYTES
            + CHECKPOINT_BYTES * self.dictionary.parameters
            + window
            + (held + KERNEL_CACHE_BYTES if on_cpu else 0),
            device=0 if on_cpu else held,
            mapped=window,
            disk=(KEEP + 1) * CHECKPOINT_BYTES * self.dictionary.parameters
            + WEIGHT_BYTES * self.dictionary.saved_parameters,
            seconds=self._step_seconds(steps),
            least=self._least(
                TRAINING_BYTES * self.dictionary.parameters + rows, WEIGHT_BYTES * self.dictionary.saved_parameters
            ),
        )
        stream = self.recipe.harvest.stream
        if stream is None or not self.shapes or self.recipe.corpus is None:
            return fitted
        # Rows beyond the sample come from the models, which are in memory beside the buffer.
        buffer = self.row_bytes * min(stream.buffer, self.train_rows)
        harvest = self.harvest()
        return StageCost(
            "train",
            memory=fitted.memory - window + harvest.memory - PROCESS_BYTES + 1.5 * buffer,
            device=fitted.device,
            mapped=0,
            disk=fitted.disk + (KEEP + 1) * buffer / 2,
            seconds=self._total(fitted.seconds, self._model_seconds(self.train_rows - self.recipe.harvest.stored_rows)),
            least=replace(fitted.least, memory=fitted.least.memory + harvest.least.memory + buffer),
        )

    def _step_seconds(self, steps: int) -> float | None:
        """Seconds of `steps` steps: the products of all rows, and the traffic over all weights once per step."""
        share = INT8_SHARE if self._uses_int8 else DENSE_SHARE
        products = self._seconds(steps * self.schedule.batch * self.dictionary.product, share)
        predictions = self._seconds(steps * self.schedule.batch * self.dictionary.predicting, DENSE_SHARE)
        weights = STEP_TRAFFIC_BYTES * self.dictionary.parameters
        return None if self.speed is None else self._total(products, predictions, steps * weights / self.speed.copy)

    @property
    def _uses_int8(self) -> bool:
        training = self.recipe.training
        may = self.recipe.crosscoder.sparsity.kind == "batch_topk" and training.precision == "auto"
        fast = pick_device(training.device).type == "cpu" and int8_search.tile_shape() is not None
        return may and fast and self.dictionary.product >= int8_search.MIN_WEIGHTS

    def evaluate(self) -> StageCost:
        logits = max((shape.vocabulary for shape in self.shapes.values()), default=0) * SCORED * LOGIT_BYTES
        models = self._weights(lambda shape: shape.parameters)
        corpus, baselines = self.recipe.corpus, self.recipe.baselines
        context = corpus.context if corpus else 0
        reads = 4 * self.recipe.evaluation.sequences + 2 * baselines.sequences * baselines.divergence
        each = sum(shape.all_multiplications for shape in self.shapes.values())
        held_out = self.kept_rows * (1 - self.train_rows / self.all_rows)
        return StageCost(
            "evaluate",
            memory=PROCESS_BYTES
            + KERNEL_CACHE_BYTES
            + self._tokenizers()
            + models * (1 + baselines.divergence)
            + logits
            + EVALUATION_BYTES
            + LOADED_BYTES * self.dictionary.saved_parameters,
            mapped=0,
            disk=0,
            seconds=self._total(
                self._seconds(held_out * self.dictionary.saved_product, 1.0),
                self._seconds(reads * context * each, EVALUATION_SHARE, loading=models),
            ),
            least=self._with_models(self._least(WEIGHT_BYTES * self.dictionary.saved_parameters, 0)),
        )

    def _with_models(self, least: Least) -> Least:
        """The same beside the whole models."""
        return replace(least, memory=least.memory + self._weights_on_cpu(lambda shape: shape.parameters))

    def analyse(self) -> StageCost:
        return self._analysis("analyse", self.kept_rows, models=True)

    def _analysis(self, stage: str, rows: float, *, models: bool) -> StageCost:
        """One encoder pass, moments of features, the readouts, and the sample of rows that claims are judged on."""
        recipe = self.recipe.analysis
        wide = sum(self.dictionary.widths.values())
        moments = 2 * 4 * self.dictionary.features * wide + 2 * 3 * 8 * max(self.dictionary.widths.values()) ** 2 * len(
            self.dictionary.widths
        )
        loaded = self._weights(lambda shape: shape.parameters) + self._tokenizers() if models else 0.0
        heads = sum(shape.vocabulary * shape.width for shape in self.shapes.values()) if models else 0
        contexts = recipe.contexts.top + 5 * recipe.contexts.per_quantile
        firings = rows * self.dictionary.active
        again = min(rows, ROWS) if models and recipe.other_layers != () else 0.0
        each = sum(shape.all_multiplications for shape in self.shapes.values())
        least = self._least(
            WEIGHT_BYTES * self.dictionary.saved_parameters + 2 * 4 * self.dictionary.features * wide, 0
        )
        return StageCost(
            stage,
            memory=PROCESS_BYTES
            + KERNEL_CACHE_BYTES
            + ANALYSIS_BYTES
            + loaded
            + moments
            + again * len(DEPTHS) * 2 * max(self.dictionary.widths.values())  # bf16
            + LOADED_BYTES * self.dictionary.saved_parameters,
            mapped=0,
            disk=firings * FIRING_BYTES
            + self.dictionary.features * contexts * recipe.contexts.window * CONTEXT_ROW_BYTES,
            seconds=self._total(
                self._seconds(rows * self.dictionary.saved_product * ANALYSIS_ENCODES, 1.0, loading=loaded),
                self._seconds(self.dictionary.features * heads, 1.0),
                self._seconds(again * each, EVALUATION_SHARE),
            ),
            least=self._with_models(least) if models else least,
        )

    def calibrate(self) -> StageCost:
        """A training and an analysis without text per source, and one more, in sequence, on rows written for them."""
        assert self.recipe.calibration is not None, "called only for recipes with a calibration"
        rows = min(self.recipe.calibration.rows, self.train_rows)
        textless = _Estimator(self.recipe, {}, self.store_widths, rows, self.speed)
        beside = textless._members()
        training = textless._together([one.fitted() for one in beside]) if beside else textless.train()
        analysis = textless._analysis("calibrate", rows, models=False)
        experiments = len(self.store_widths) + 1
        seconds = self._total(*[training.seconds, analysis.seconds] * experiments)
        disk = rows * self.row_bytes + max(training.disk, analysis.disk)
        # The C allocator keeps much of the training's memory during the analysis.
        memory = training.memory + analysis.memory - PROCESS_BYTES
        mapped = max(training.mapped, analysis.mapped)
        return StageCost("calibrate", memory, mapped, disk, seconds, training.device, training.least)

    @staticmethod
    def _total(*seconds: float | None) -> float | None:
        known = [part for part in seconds if part is not None]
        return sum(known) if len(known) == len(seconds) else None


def _bytes_per_weight(source: SourceRecipe) -> float:
    if source.quantization is not None:
        return QUANTIZED_BITS[source.quantization] / 8
    if source.dtype == "auto":
        return compute_dtype(pick_device(source.device)).itemsize
    return 4 if source.dtype == "float32" else 2
