"""Recipe: the frozen description of one run, read from YAML.

Unknown keys are refused and the nearest known key is named, because a
misspelt `k` would otherwise train the wrong dictionary for a day.
"""

import copy
import difflib
import hashlib
import itertools
import json
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
    Part,
    SourceRecipe,
    TrainingRecipe,
)
from trainer.recipe.measuring import (
    AnalysisRecipe,
    BaselinesRecipe,
    CalibrationRecipe,
    EvaluationRecipe,
)
from trainer.recipe.overrides import apply_override

SHARED_IN_A_SWEEP = ("training.batch", "training.epochs", "training.shuffle_seed", "training.device")
"""Settings that decide which rows come when and where: runs trained side by side have them in common."""

LATER = (
    ("", "imported"),
    ("", "calibration"),
    ("crosscoder", "damp_above"),
    ("crosscoder", "loss"),
    ("harvest", "stream"),
)
"""Section and key of what recipes could not say at first; without it they mean what they meant."""

RENAMED = (
    ("analysis.verdict", "readout_ratio", "readout_contrast"),
    ("analysis.verdict", "readout_ratio_same_space", "readout_contrast_same_space"),
)
"""Section, old and new name of keys. Old names are read, and are part of a run's identity, so that older runs stay."""


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
    sweep: dict[str, tuple[Any, ...]] = {}  # noqa: RUF012 - pydantic copies defaults
    """Settings to vary, by path (`training.seed: [0, 1, 2]`): one run for every combination, trained side by side."""
    imported: ImportedRecipe | None = None
    """Where the crosscoder comes from when this run did not train it; `crossdiff import` writes it."""

    @model_validator(mode="after")
    def _distinct_sources(self) -> "Recipe":
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"two sources have the same name: {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _streamed_once(self) -> "Recipe":
        if self.harvest.stream is not None and self.training.epochs != 1:
            raise ValueError("harvest.stream reads every row once: set training.epochs to 1, or leave it out")
        if self.harvest.stream is not None and (self.sweep or self.baselines.diff_sae):
            raise ValueError("harvest.stream feeds one training: leave out `sweep` and baselines.diff_sae, or it")
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
        for section, old, new in RENAMED:
            _rename(data, section, new, old)
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
        data["baselines"]["diff_sae"], data["calibration"] = False, None
        # It has one source, which no name in these settings means.
        data["crosscoder"] |= {"variant": "diff_sae", "inputs": (), "targets": ()}
        data["analysis"]["same_space"] = "auto"
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
    for section, old, new in RENAMED:
        _rename(data, section, old, new)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise RecipeError(f"{origin}: " + " ".join(lines)) from None


def _rename(data: dict[str, Any], section: str, name: str, to: str) -> None:
    """Rename a key of a section, in place, where the section has it and not the other name too."""
    part: Any = data
    for step in section.split("."):
        part = part.get(step) if isinstance(part, dict) else None
    if isinstance(part, dict) and name in part and to not in part:
        part[to] = part.pop(name)


def _example() -> Path:
    return Path(__file__).resolve().parents[1] / "recipes" / "demo.yaml"


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
