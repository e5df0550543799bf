"""Bench of steering: the worker's generation with a direction added, against the library's own on the same model."""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from app.worker.sampling import Change, Sampling, generate, prompt_tokens
from trainer.bench.machine import Machine
from trainer.bench.prerequisites import DEMO, require_models
from trainer.bench.repeats import Repeats, in_turns, ratios
from trainer.bench.report import Report, shown
from trainer.errors import RecipeError
from trainer.models.hookpoint import locate
from trainer.models.source import Source, load_source
from trainer.recipe.fitting import SourceRecipe
from trainer.recipe.recipe import Recipe, load_recipe

PROMPT = "The oldest part of the city lies between the river and the hill, and people who walk there"
HARMLESS = 1e-6
"""Length of the direction added: the same work as any other, and yet the same text."""


def bench_steer(
    recipe_path: Path = DEMO,
    overrides: tuple[str, ...] = (),
    *,
    source: str | None = None,
    tokens: int = 32,
    rounds: int = 5,
) -> Report:
    """Generate with one source of a recipe, the first by default, with and without steering in turns.

    Raises RecipeError for a source that the recipe does not have, SourceError when its model is not on this machine.
    """
    recipe = load_recipe(recipe_path, overrides)
    require_models(recipe, recipe_path)
    chosen = _chosen(recipe, recipe_path, source)
    loaded = load_source(chosen)
    machine = Machine()
    plain, steered, first = measure(loaded, tokens, rounds)
    overhead = Repeats.of([ratio - 1 for ratio in ratios(steered, plain)])
    first_ms = Repeats.of([1000 * seconds for seconds in first])
    rows = (
        ("overhead of steering per token", shown(overhead)),
        ("ms per token, steered", shown(Repeats.of([1000 * seconds for seconds in steered]))),
        ("ms per token, transformers' generate", shown(Repeats.of([1000 * seconds for seconds in plain]))),
        ("ms until the first token, steered", shown(first_ms)),
        ("eight requests together over one by one", shown(None)),
    )
    notes = (
        f"{chosen.name} ({chosen.model}), {tokens} tokens at most, always the likeliest.",
        f"Median (least–most) of {rounds}, both in turns. Torch uses {torch.get_num_threads()} threads.",
        "Requests do not run in batches yet.",
        machine.note(),
    )
    figures = {"overhead": overhead.median, "batch_speedup_8": None, "first_token_ms": first_ms.median}
    return Report("Steering", ("", "measured"), rows, figures, notes)


def measure(source: Source, tokens: int, rounds: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds per token of plain and of steered generation, and seconds until the first steered token, per round."""
    prompt = prompt_tokens(source, PROMPT, chat=False)
    first: list[float] = []
    counts: dict[str, list[int]] = {"plain": [], "steered": []}

    def plain() -> None:
        counts["plain"].append(_plain(source, prompt, tokens))

    def steered() -> None:
        counts["steered"].append(_steered(source, prompt, tokens, first.append))

    plain()
    steered()
    seconds = in_turns({"plain": plain, "steered": steered}, rounds)
    # What came before the rounds warmed up and does not count.
    per_token = {name: ratios(seconds[name], count[1:]) for name, count in counts.items()}
    return per_token["plain"], per_token["steered"], first[1:]


def _plain(source: Source, prompt: list[int], tokens: int) -> int:
    """Tokens that transformers' own generation makes."""
    ids = torch.tensor([prompt], device=source.device)
    with torch.inference_mode():
        whole = source.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=source.tokenizer.pad_token_id,
        )
    return len(whole[0]) - len(prompt)


def _steered(source: Source, prompt: list[int], tokens: int, tell_first: Callable[[float], None]) -> int:
    """Tokens that the worker's generation makes; says after how many seconds the first was there."""
    hookpoint = locate(source, source.recipe.hookpoint, source.recipe.layer)
    direction = torch.full((source.width,), HARMLESS / source.width**0.5)
    began, count = time.perf_counter(), 0
    for _ in generate(source, hookpoint, prompt, Sampling(tokens), Change(direction, "all")):
        if count == 0:
            tell_first(time.perf_counter() - began)
        count += 1
    return count


def _chosen(recipe: Recipe, path: Path, name: str | None) -> SourceRecipe:
    """The source of this name, or the first."""
    found = next((source for source in recipe.sources if name in (None, source.name)), None)
    if found is None:
        known = ", ".join(source.name for source in recipe.sources)
        raise RecipeError(f"{path} has no source {name!r}. Its sources: {known}.")
    return found
