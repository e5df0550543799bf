"""Hookpoints read what the model computes, and edit it only inside the context."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MptConfig,
    Olmo2Config,
    OPTConfig,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from trainer.errors import SourceError
from trainer.models.hookpoint import editing, locate, read

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE, num_key_value_heads=2),
    "qwen2": Qwen2Config(**SHAPE, num_key_value_heads=2),
    "gemma2": Gemma2Config(**SHAPE, num_key_value_heads=2, head_dim=4),
    "gemma3": Gemma3TextConfig(**SHAPE, num_key_value_heads=2, head_dim=4, sliding_window=4),
    "olmo2": Olmo2Config(**SHAPE, num_key_value_heads=2),
    "phi": PhiConfig(**SHAPE, num_key_value_heads=2),
    "gpt_neox": GPTNeoXConfig(**SHAPE),
    "opt": OPTConfig(vocab_size=50, hidden_size=16, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=3,
                     num_attention_heads=4, **SPECIAL),
    "gpt2": GPT2Config(vocab_size=50, n_embd=16, n_layer=3, n_head=4, **SPECIAL),
    "falcon": FalconConfig(**{**SHAPE, "ffn_hidden_size": 32}),
    "bloom": BloomConfig(vocab_size=50, hidden_size=16, n_layer=3, n_head=4, **SPECIAL),
    "mpt": MptConfig(vocab_size=50, d_model=16, n_layers=3, n_heads=4, **SPECIAL),
}  # fmt: skip
IDS = torch.tensor([[1, 7, 9, 11, 23, 42, 5, 8, 30, 12], [1, 44, 3, 17, 6, 6, 21, 35, 49, 4]])


@dataclass
class TinySource:
    """The parts of a source that a hookpoint needs, with the model."""

    name: str
    model: PreTrainedModel

    @property
    def body(self) -> nn.Module:
        return self.model.get_decoder()

    @property
    def blocks(self) -> nn.ModuleList:
        return next(module for module in self.body.modules() if isinstance(module, nn.ModuleList) and len(module) == 3)

    def logits(self, ids: Tensor = IDS) -> Tensor:
        with torch.inference_mode():
            return self.model(ids, use_cache=False).logits


def tiny(family: str = "llama") -> TinySource:
    model = AutoModelForCausalLM.from_config(FAMILIES[family])
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return TinySource(family, model.eval().requires_grad_(False))


@pytest.mark.parametrize("family", FAMILIES)
def test_residual_streams_equal_the_hidden_states_that_the_model_reports(family: str):
    source = tiny(family)
    with torch.inference_mode():
        reported = source.model(IDS, output_hidden_states=True, use_cache=False).hidden_states

    assert torch.equal(read(source, locate(source, "resid_pre", 1), IDS), reported[1])
    assert torch.equal(read(source, locate(source, "resid_post", 1), IDS), reported[2])


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_and_mlp_outputs_add_up_to_the_difference_a_block_makes(family: str):
    source = tiny(family)

    before, after, attention, mlp = (
        read(source, locate(source, kind, 1), IDS) for kind in ("resid_pre", "resid_post", "attn_out", "mlp_out")
    )

    torch.testing.assert_close(before + attention + mlp, after)
    assert attention.abs().sum() > 0
    assert mlp.abs().sum() > 0


@pytest.mark.parametrize("kind", ["resid_pre", "resid_post", "mlp_in", "mlp_out", "attn_out"])
@pytest.mark.parametrize("family", FAMILIES)
def test_reading_on_to_the_end_reads_the_same(family: str, kind):
    source = tiny(family)
    hookpoint = locate(source, kind, 1)

    assert torch.equal(read(source, hookpoint, IDS), read(source, hookpoint, IDS, stop=False))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_mlp_out_is_the_mlp_applied_to_mlp_in(family: str):
    source = tiny(family)

    into = read(source, locate(source, "mlp_in", 2), IDS)

    with torch.inference_mode():
        torch.testing.assert_close(source.blocks[2].mlp(into), read(source, locate(source, "mlp_out", 2), IDS))


def test_edits_get_three_dimensions_in_families_that_flatten_the_batch():
    source = tiny("opt")
    seen: list[Tensor] = []
    plain = source.logits()

    def look(activation: Tensor) -> Tensor:
        seen.append(activation)
        return activation

    with editing(source, locate(source, "mlp_in", 0), look):
        edited = source.logits()

    assert [tuple(activation.shape) for activation in seen] == [(2, 10, 16)]
    assert torch.equal(edited, plain)


@pytest.mark.parametrize("stop", [True, False])
def test_reading_stops_after_the_hookpoint_only_with_stop(stop: bool):
    source = tiny()
    ran: list[int] = []
    for layer, block in enumerate(source.blocks):
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))

    # The reading hook is registered after these, so the hookpoint's own block is recorded.
    read(source, locate(source, "resid_post", 1), IDS, stop=stop)

    assert ran == ([0, 1] if stop else [0, 1, 2])


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "opt"])
def test_padding_at_the_end_changes_nothing_before_it(family: str):
    source = tiny(family)
    hookpoint = locate(source, "resid_post", 2)
    mask = torch.ones_like(IDS)
    mask[0, 6:] = 0

    padded = read(source, hookpoint, IDS * mask, mask)

    alone = read(source, hookpoint, IDS[:1, :6])
    torch.testing.assert_close(padded[0, :6], alone[0])


def test_padding_at_the_start_is_hidden_by_the_mask():
    source = tiny("llama")
    hookpoint = locate(source, "resid_post", 2)
    left = torch.tensor([[0, 0, 0, 1, 7, 9, 11]])

    padded = read(source, hookpoint, left, (left != 0).long())

    # Llama's positions are relative, so shifting the text by three changes nothing.
    torch.testing.assert_close(padded[0, 3:], read(source, hookpoint, left[:, 3:])[0])


@pytest.mark.parametrize("kind", ["resid_pre", "resid_post", "mlp_in", "mlp_out", "attn_out"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_an_edit_that_changes_nothing_leaves_every_bit_of_the_logits(family: str, kind):
    source = tiny(family)
    plain = source.logits()

    with editing(source, locate(source, kind, 1), lambda activation: activation.clone()):
        edited = source.logits()

    assert torch.equal(edited, plain)


def test_the_model_continues_from_the_edited_activation():
    source = tiny()
    stream = torch.randn(2, 10, 16)

    with editing(source, locate(source, "resid_post", 2), lambda _: stream):
        logits = source.logits()

    torch.testing.assert_close(logits, source.model.lm_head(source.body.norm(stream)))


def test_nested_edits_apply_in_the_order_they_were_entered():
    source = tiny()
    hookpoint = locate(source, "resid_post", 0)
    plain = read(source, hookpoint, IDS)

    with editing(source, hookpoint, lambda x: x + 1), editing(source, hookpoint, lambda x: 2 * x):
        seen = read(source, hookpoint, IDS)

    assert torch.equal(seen, 2 * (plain + 1))


def test_generation_with_a_cache_edits_the_prompt_and_then_one_token_at_a_time():
    source = tiny()
    lengths: list[int] = []

    def look(activation: Tensor) -> Tensor:
        lengths.append(activation.shape[1])
        return activation

    with editing(source, locate(source, "resid_post", 1), look):
        source.model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=4, min_new_tokens=4)

    assert lengths == [10, 1, 1, 1]


def test_hooks_are_removed_when_the_edit_or_the_context_body_fails():
    source = tiny()
    plain = source.logits()
    hookpoint = locate(source, "resid_post", 1)

    def broken(activation: Tensor) -> Tensor:
        raise ArithmeticError

    with pytest.raises(ArithmeticError), editing(source, hookpoint, broken):
        source.logits()
    with pytest.raises(KeyError), editing(source, hookpoint, torch.zeros_like):
        raise KeyError

    assert torch.equal(source.logits(), plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in source.model.modules())


def test_a_failed_read_inside_an_edit_leaves_the_edit_active():
    source = tiny()
    hookpoint = locate(source, "resid_post", 0)

    with editing(source, hookpoint, torch.zeros_like):
        with pytest.raises(IndexError):
            read(source, hookpoint, IDS + 1000)
        assert read(source, hookpoint, IDS).abs().sum() == 0


@pytest.mark.parametrize("layer", [-1, 3])
def test_a_layer_out_of_range_is_rejected_with_the_valid_range(layer: int):
    with pytest.raises(SourceError, match=rf"llama has no layer {layer}: its layers are 0 to 2"):
        locate(tiny(), "resid_post", layer)


def test_a_block_without_a_known_mlp_is_rejected_with_the_names_of_its_parts():
    source = tiny()
    del source.blocks[1].mlp

    with pytest.raises(SourceError, match=r"llama has no mlp_out .*self_attn, input_layernorm"):
        locate(source, "mlp_out", 1)
    assert locate(source, "resid_post", 1).module is source.blocks[1]
