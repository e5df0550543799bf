"""On the demo's own models: off is the library's generation to the bit, and steering is the formula."""

from pathlib import Path

import pytest
import torch

from app.worker.growing_text import carries_cache
from app.worker.sampling import Sampling, end_tokens, generate, prompt_tokens, steering_of
from trainer.models.hookpoint import editing, locate
from trainer.models.source import Source, load_source
from trainer.recipe.fitting import SourceRecipe

pytestmark = [pytest.mark.models, pytest.mark.slow]

PROMPT = "What is the capital of France?"


@pytest.fixture(scope="module", params=["SmolLM2-*", "gemma-3-*"])
def source(request: pytest.FixtureRequest, models_folder: Path) -> Source:
    """A model of the demo, as it was unpacked."""
    folder = next((path.parent for path in models_folder.glob(f"{request.param}/config.json")), None)
    if folder is None:
        pytest.skip(f"no {request.param} in {models_folder}: make demo")
    return load_source(SourceRecipe(name="real", model=str(folder), layer=9))


def test_off_is_plain_generation_to_the_bit(source: Source):
    prompt = prompt_tokens(source, PROMPT, chat=True)
    carries_cache(source)  # found out by passes of its own
    seen: list[torch.Tensor] = []
    handle = source.model.register_forward_hook(lambda _module, _args, output: seen.append(output.logits[0, -1]))
    mine = list(generate(source, locate(source, "resid_post", 9), prompt, Sampling(12), None))
    handle.remove()
    plain = source.model.generate(
        torch.tensor([prompt]),
        max_new_tokens=12,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        eos_token_id=list(end_tokens(source)),
    )
    assert plain.sequences[0, len(prompt) :].tolist() == mine
    assert all(torch.equal(a[0], b.float()) for a, b in zip(plain.logits, seen, strict=True))


def test_on_is_the_formula_in_the_models_own_precision(source: Source):
    prompt = prompt_tokens(source, PROMPT, chat=True)
    hook = locate(source, "resid_post", 9)
    direction = torch.randn(source.width, generator=torch.Generator().manual_seed(0))
    steering = steering_of(direction, strength=2.0, max_activation=3.0, positions="all")
    carries_cache(source)
    before: list[torch.Tensor] = []
    after: list[torch.Tensor] = []
    below = source.blocks[10].register_forward_pre_hook(
        lambda _module, args, kwargs: after.append((args[0] if args else kwargs["hidden_states"]).clone()),
        with_kwargs=True,
    )
    with editing(source, hook, lambda x: before.append(x.clone()) or x):
        tokens = list(generate(source, hook, prompt, Sampling(3), steering))
    below.remove()
    assert len(before) == len(tokens) == 3
    for was, became in zip(before, after, strict=True):
        assert torch.equal(became, (was.float() + 6.0 * direction).to(was.dtype))
