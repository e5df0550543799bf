"""Every family generates what the library's own `generate` does, steered and not, whatever it calls its cache."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.worker import growing_text
from app.worker.growing_text import carries_cache
from app.worker.sampling import Sampling, Steering, generate
from tests.worlds.families import FAMILIES, WIDTH, tiny_family_model
from trainer.errors import SourceError
from trainer.models.hookpoint import locate

PROMPT = [1, *(3 + index * 7 % 50 for index in range(20))]
TOKENS = 8
WITHOUT_CACHE = {"openai-gpt", "recurrent_gemma", "bailing_hybrid", "kimi_linear", "xlstm"}
"""Families that have none, keep it in their modules, or whose cache this version of the library cannot read back."""
SEVERAL_STREAMS = {"deepseek_v4", "gemma3n_text", "hy_v4"}
"""Families whose residual stream is several vectors per token."""


def family_source(family: str) -> Any:
    """What sampling needs of a source: a tiny model of a family, whose end of text never comes."""
    model: Any = tiny_family_model(family)
    model.generation_config.eos_token_id = None
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) > 1]
    return SimpleNamespace(
        name=family,
        model=model,
        body=model.get_decoder(),
        blocks=lists[0],
        tokenizer=SimpleNamespace(eos_token_id=None),
        device=model.device,
    )


def texts_in_turns(source: Any, *steerings: Steering | None) -> list[list[int]]:
    """Texts of one prompt, each steered in its way, one token of each after another."""
    hook = locate(source, "resid_post", 1)
    texts = [generate(source, hook, PROMPT, Sampling(TOKENS), steering) for steering in steerings]
    return [list(text) for text in zip(*zip(*texts, strict=True), strict=True)]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_it_writes_what_the_library_does_and_steering_needs_no_cache(family: str, monkeypatch: pytest.MonkeyPatch):
    source = family_source(family)
    cached = carries_cache(source)
    assert cached is (family not in WITHOUT_CACHE)
    direction = 3 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    steerings = [Steering(direction, positions) for positions in ("all", "prompt", "generated")]
    if family in SEVERAL_STREAMS:
        with pytest.raises(SourceError, match="several vectors per token"):
            texts_in_turns(source, steerings[0])
        steerings = []
    texts = texts_in_turns(source, None, *steerings, None)
    plain = source.model.generate(torch.tensor([PROMPT]), max_new_tokens=TOKENS, do_sample=False, use_cache=cached)
    assert texts[0] == texts[-1] == plain[0, len(PROMPT) :].tolist()
    assert texts[0] not in texts[1:-1][:1], "steering does something"
    monkeypatch.setitem(growing_text._carries, source.model, False)
    assert texts_in_turns(source, *steerings) == texts[1:-1], "as from the first token again each time"


def test_a_model_that_cannot_go_on_at_all_is_refused(monkeypatch: pytest.MonkeyPatch):
    source = family_source("llama")

    def broken(**inputs: Any) -> None:
        raise ValueError("no")

    monkeypatch.setattr(source.model, "forward", broken)
    with pytest.raises(SourceError, match=r"llama cannot go on from a text: LlamaForCausalLM says ValueError\('no'\)"):
        texts_in_turns(source, None)
