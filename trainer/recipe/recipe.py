"""The immutable description of one run, read from YAML.

Unknown keys are rejected with the nearest known key, because a misspelt `k` would otherwise train the wrong dictionary
for a day.
"""

import copy
import difflib
import hashlib
import itertools
import json
import math
import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, model_validator

from trainer.errors import RecipeError
from trainer.recipe.fitting import (
    CorpusRecipe,
    CrosscoderRecipe,
    HarvestRecipe,
    ImportedRecipe,
    Name,
    RecipeSection,
    SourceRecipe,
    TrainingRecipe,
)
from trainer.recipe.measuring import (
    AnalysisRecipe,
    BaselinesRecipe,
    CalibrationRecipe,
    EvaluationRecipe,
    VerdictRecipe,
)
from trainer.recipe.overrides import apply_override
from trainer.recipe.yaml_text import read_yaml

FIXED_IN_A_SWEEP = ("training.batch", "training.epochs", "training.shuffle_seed", "training.device")
"""Settings that determine the batches and the device, which runs trained side by side share."""

MAX_SWEEP = 256
"""Runs of one sweep; they are trained side by side."""

ADDED_KEYS = (
    ("", "imported"),
    ("", "calibration"),
    ("analysis", "other_layers"),
    ("crosscoder", "damp_above"),
    ("crosscoder", "loss"),
    ("crosscoder", "residual"),
    ("harvest", "stream"),
    ("training", "weight_decay"),
)
"""Section and key of settings added after the first version. While unset, they do not enter a run's identity, so that
older recipes keep their fingerprint."""

REMOVED_KEYS: tuple[tuple[str, str, Any], ...] = (
    ("analysis", "decoys", 1024),
    ("analysis.verdict", "q_value", 0.05),
    ("analysis.verdict", "readout_ratio", 0.5),
    ("analysis.verdict", "readout_ratio_same_space", 0.9),
    ("analysis.verdict", "readout_contrast", 0.5),
    ("analysis.verdict", "readout_contrast_same_space", 0.9),
    ("analysis.verdict", "equal_readout", 0.8),
    ("analysis.verdict", "refuted_from", 0.1),
    ("analysis.verdict", "owner_readout", 0.02),
)
"""Section, key and default of settings that are gone. A recipe may still give the default."""
IDENTITY_KEYS = tuple(removed for removed in REMOVED_KEYS if "readout_contrast" not in removed[1])
"""Removed settings that a run's identity still has, so that older recipes keep their fingerprint."""
LATER_VERDICT_KEYS = (
    "divergence_ratio",
    "probe_ratio",
    "probe_ratio_same_space",
    "equal_probe",
    "excess",
    "fdr",
    "own_probe",
)
"""Settings of `analysis.verdict` that enter a run's identity only where they differ from their default."""


class Recipe(RecipeSection):
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
    """Null run and spike-ins as a stage of the run; `{}` takes the defaults, null skips the stage."""
    sweep: dict[str, tuple[Any, ...]] = {}  # noqa: RUF012 - pydantic copies defaults
    """Values to vary by path (`training.seed: [0, 1, 2]`); every combination is a run, trained side by side."""
    imported: ImportedRecipe | None = None
    """Origin of a crosscoder that this run did not train; written by `crossdiff import`."""

    @model_validator(mode="after")
    def _distinct_sources(self) -> "Recipe":
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"two sources have the same name: {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _known_answerers(self) -> "Recipe":
        names = [source.name for source in self.sources]
        for part in () if self.corpus is None else self.corpus.mix:
            if part.answers is not None and part.answers.source not in names:
                raise ValueError(f"answers: no source is named {part.answers.source!r}; there are {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _sweep_of_some_runs(self) -> "Recipe":
        for path, values in self.sweep.items():
            if not values:
                raise ValueError(f"sweep: {path} has no values; list some, or leave it out")
        if (runs := math.prod(map(len, self.sweep.values()))) > MAX_SWEEP:
            raise ValueError(
                f"sweep has {runs:,} combinations, and at most {MAX_SWEEP} are possible; vary less at once"
            )
        return self

    @model_validator(mode="after")
    def _streamed_once(self) -> "Recipe":
        if self.harvest.stream is not None and self.training.epochs not in (None, 1):
            raise ValueError("harvest.stream reads every row once: set training.epochs to 1, or leave it out")
        if self.harvest.stream is not None and (self.sweep or self.baselines.diff_sae):
            raise ValueError("harvest.stream feeds one training: leave out `sweep` and baselines.diff_sae, or it")
        return self

    def with_absolute_paths(self) -> "Recipe":
        """The same recipe, with relative paths taken from the current folder: it means the same everywhere."""
        sources = tuple(
            source.model_copy(update={"model": absolute(source.model), "adapter": absolute(source.adapter)})
            for source in self.sources
        )
        corpus = self.corpus
        if corpus is not None:
            mix = tuple(part.model_copy(update={"path": absolute(part.path, is_path=True)}) for part in corpus.mix)
            corpus = corpus.model_copy(update={"mix": mix})
        return self.model_copy(update={"sources": sources, "corpus": corpus})

    def fingerprint(self) -> str:
        """Eight hex digits of a hash of `identity`."""
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def identity(self) -> dict[str, Any]:
        """The recipe as plain data, without unset keys that were added later, and with those that are gone."""
        data = self.model_dump(mode="json")
        if self.baselines == BaselinesRecipe():
            del data["baselines"]
        for section, key in ADDED_KEYS:
            if (data[section] if section else data)[key] is None:
                del (data[section] if section else data)[key]
        for part in (data["corpus"] or {}).get("mix", ()):
            for key in ("conversation", "answers"):
                if part[key] is None:
                    del part[key]
        defaults = VerdictRecipe()
        for key in LATER_VERDICT_KEYS:
            if data["analysis"]["verdict"][key] == getattr(defaults, key):
                del data["analysis"]["verdict"][key]
        for path, key, value in IDENTITY_KEYS:
            _section_of(data, path)[key] = value
        return data

    def variants(self) -> tuple["Recipe", ...]:
        """The recipes of a sweep, each complete, followed by those that `baselines.diff_sae` adds.

        Only this recipe if nothing is varied or added. Raises RecipeError for a setting that does not exist, that
        cannot vary because the runs of a sweep share their rows, or for the same run twice.
        """
        # Defaults may depend on what is varied.
        plain = self.model_dump(mode="json", exclude={"sweep"}, exclude_unset=True)
        recipes: list[Recipe] = []
        for values in itertools.product(*self.sweep.values()):
            data = copy.deepcopy(plain)
            for path, value in zip(self.sweep, values, strict=True):
                if path.split(".")[0] not in ("crosscoder", "training") or path in FIXED_IN_A_SWEEP:
                    raise RecipeError(f"sweep: {path!r} cannot vary within one, because its runs share their rows.")
                apply_override(data, f"{path}={json.dumps(value)}")
            recipe = parse_recipe(data, origin=f"sweep of {self.name}")
            if recipe in recipes:
                raise RecipeError(f"sweep: {', '.join(self.sweep)} lists the same values twice. Leave one out.")
            recipes.append(recipe)
        diff_saes = [variant for recipe in recipes if (variant := recipe.diff_sae_variant()) is not None]
        return (*recipes, *diff_saes)

    def diff_sae_variant(self) -> "Recipe | None":
        """The same recipe with the variant `diff_sae`, if `baselines.diff_sae` requests it; else None."""
        if not self.baselines.diff_sae or self.crosscoder.variant == "diff_sae":
            return None
        data = self.model_dump(mode="json")
        data["baselines"]["diff_sae"], data["calibration"] = False, None
        # A diff-SAE has one source, the difference, so settings that name sources do not apply.
        data["crosscoder"] |= {"variant": "diff_sae", "inputs": (), "targets": (), "residual": None}
        data["analysis"]["same_space"] = "auto"
        return parse_recipe(data, origin=f"diff-SAE of {self.name}")

    def to_yaml(self) -> str:
        """The resolved recipe as YAML, with every default."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe and apply `key.path=value` overrides (values are YAML); relative paths become absolute.

    Raises RecipeError for a missing file, bad YAML, an unknown key or a value out of range.
    """
    try:
        data = read_yaml(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise RecipeError(f"No recipe at {path}. Give the path of a YAML file, for example {_example()}.") from None
    except IsADirectoryError:
        inside = path / "recipe.yaml"
        hint = f"Did you mean {inside}?" if inside.is_file() else f"Give a YAML file, for example {_example()}."
        raise RecipeError(f"{path} is a folder, not a recipe. {hint}") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}. Check the file and its permissions.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not readable YAML: {error}. Correct it there.") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path} holds no recipe: expected keys such as `name:` and `sources:` at the top.")
    return parse_recipe(data, origin=str(path), overrides=overrides).with_absolute_paths()


def parse_recipe(data: dict[str, Any], *, origin: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Validate a recipe given as plain data, after applying overrides. Raises RecipeError that names `origin`."""
    for override in overrides:
        apply_override(data, override)
    _drop_removed_keys(data, origin)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise RecipeError(f"{origin}: " + " ".join(lines)) from None


def absolute(address: str | None, *, is_path: bool = False) -> str | None:
    """An address with its path made absolute; package addresses and names on the hub stay, unless it `is_path`."""
    if address is None or address.startswith("pypi:"):
        return address
    path = os.path.abspath(os.path.expanduser(address))  # noqa: PTH100, PTH111 - resolves no links, and keeps patterns
    local = is_path or address.startswith((".", "~", "/")) or address.endswith(".gguf") or os.path.exists(path)  # noqa: PTH110
    return path if local else address


def _drop_removed_keys(data: dict[str, Any], origin: str) -> None:
    """Drop settings that are gone, in place. Raises RecipeError for one that is not at its former default."""
    for path, key, default in REMOVED_KEYS:
        section = _section_of(data, path)
        if key in section and section.pop(key) != default:
            raise RecipeError(f"{origin}: {path}.{key} is gone with the rule that it belonged to. Leave it out.")


def _section_of(data: dict[str, Any], path: str) -> dict[str, Any]:
    """A section of plain data; an empty one that belongs to nothing if the data lacks it."""
    section: Any = data
    for step in path.split("."):
        section = section.get(step) if isinstance(section, dict) else None
    return section if isinstance(section, dict) else {}


def _example() -> Path:
    return Path(__file__).resolve().parents[1] / "recipes" / "demo.yaml"


def _explain(problem: Any) -> str:
    """One sentence about a validation problem; for an unknown key, with the nearest known one."""
    where = ".".join(str(step) for step in problem["loc"]) or "the recipe"
    if problem["type"] != "extra_forbidden":
        return f"{where}: {problem['msg']}."
    known = _known_keys(problem["loc"][:-1])
    nearest = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
    hint = f"Did you mean {nearest[0]!r}?" if nearest else f"Known keys: {', '.join(known)}."
    return f"{where}: unknown key. {hint}"


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """Field names of the section at a pydantic error location."""
    model: Any = Recipe
    for step in location:
        if isinstance(step, int):
            continue
        model = _section_in(model.model_fields[step].annotation)
    return list(model.model_fields)


def _section_in(annotation: Any) -> Any:
    """The section class in an annotation `X`, `X | None` or `tuple[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, RecipeSection):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _section_in(inner)
        if found is not None:
            return found
    return None
