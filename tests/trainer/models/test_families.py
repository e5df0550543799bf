"""Of every family of models, each hookpoint is read and edited as the library computes it, or refused in a sentence."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.worlds.families import ENCODERS, FAMILIES, VOCABULARY, WIDTH, save_family
from trainer.errors import SourceError
from trainer.models.hookpoint import editing, locate, read
from trainer.models.probe import check_source
from trainer.models.source import Source, load_source, truncate_after
from trainer.recipe.fitting import SourceRecipe

KINDS = ("resid_pre", "resid_post", "mlp_in", "mlp_out", "attn_out")
ALL, PARTS, NONE = frozenset(KINDS), frozenset({"mlp_out", "attn_out"}), frozenset()
RESIDUAL = frozenset({"resid_pre", "resid_post"})
REFUSED: dict[str, frozenset[str]] = {
    # Several streams per token.
    **dict.fromkeys(("deepseek_v4", "gemma3n_text", "hy_v4"), ALL),
    # Two attentions and MLPs in each of half as many blocks.
    "longcat_flash": ALL,
    # What the block adds is scaled, normed, or not only attention and an MLP.
    **dict.fromkeys(
        ("doge", "falcon_h1", "gemma4_text", "granite-scaled", "granitemoehybrid", "inkling_text", "minicpm3",
         "minimax", "openai-gpt", "opt-350m", "zaya"), PARTS,
    ),
    # Attention is not a part of its own.
    **dict.fromkeys(("dbrx", "xlstm"), PARTS),
    # No MLP.
    **dict.fromkeys(("falcon_mamba", "mamba", "mamba2", "nemotron_h", "zamba", "zamba2"), ALL - RESIDUAL),
    # They read both ways, or need what the text alone does not give.
    **dict.fromkeys(ENCODERS, ALL),
    # Decoders of translation models, saved alone: they read as any other.
    **dict.fromkeys(("mbart", "pegasus", "blenderbot", "whisper"), NONE),
    **dict.fromkeys(("bart", "marian"), PARTS),
}  # fmt: skip
WITHOUT_LOGITS = {"modernbert-decoder", "opt-350m"}
"""Their logits are not unembedding × final norm of the last residual stream."""
OWN_HIDDEN_STATES = {"falcon_mamba", "mamba", "mamba2", "rwkv"}
"""What they report as hidden states is not what their blocks give."""
IDS = torch.tensor([[3, 7, 9, 11, 23, 42, 5, 8, 30, 12], [3, 44, 9, 17, 6, 6, 21, 35, 49, 4]])
LAYER = 1


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers says of slow paths and of ids in default configs is no news here."""
    monkeypatch.setattr(logging.getLogger("transformers"), "disabled", True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", [*FAMILIES, *ENCODERS])
def test_every_hookpoint_is_read_and_edited_as_the_library_computes_it_or_refused(family: str, tmp_path: Path):
    save_family(family, tmp_path)
    refused: set[str] = set()
    sentences: list[str] = []
    loaded: list[Source] = []
    for kind in KINDS:
        recipe = SourceRecipe(
            name="tiny", model=str(tmp_path), layer=LAYER, dtype="float32", device="cpu", hookpoint=kind
        )
        try:
            if loaded:
                check_source(replace(loaded[0], recipe=recipe))
            else:
                loaded.append(load_source(recipe))
        except SourceError as error:
            refused.add(kind)
            sentences.append(str(error))
    assert all(re.fullmatch(r"tiny.* .*[.] (Use|Choose) .*[.]", sentence) for sentence in sentences)
    assert refused == REFUSED.get(family, NONE)
    if not loaded:
        return
    source = loaded[0]
    assert (source.logit_obstacle is not None) == (family in WITHOUT_LOGITS)
    points = {kind: locate(source, kind, LAYER) for kind in KINDS if kind not in refused}
    found = {kind: read(source, point, IDS) for kind, point in points.items()}
    check_reading(source, found, reported=family not in OWN_HIDDEN_STATES)
    check_editing(source, points, found)
    cut = truncate_after(source, LAYER)
    for kind, point in points.items():
        assert torch.equal(read(cut, point, IDS), found[kind]), kind


def check_reading(source: Source, found: dict[str, Tensor], *, reported: bool) -> None:
    """Residual streams are the block's input and output, and the parts are what it adds."""
    with watching(block(source)) as (inputs, outputs), torch.inference_mode():
        states = source.model(IDS, use_cache=False, output_hidden_states=True).hidden_states
    assert all(activation.shape == (*IDS.shape, WIDTH) for activation in found.values())
    assert torch.equal(found["resid_pre"], inputs[0])
    assert torch.equal(found["resid_post"], outputs[0])
    if reported:
        assert torch.equal(found["resid_post"], states[LAYER + 1])
        assert torch.equal(found["resid_pre"], states[LAYER])
    if found.keys() >= PARTS:
        total = found["resid_pre"] + found["attn_out"] + found["mlp_out"]
        torch.testing.assert_close(total, found["resid_post"], rtol=1e-4, atol=1e-4)
        assert min(found[part].abs().max() for part in PARTS) > 1e-3


def check_editing(source: Source, points: dict, found: dict[str, Tensor]) -> None:
    """The model goes on from an edited activation, and an edit that changes nothing leaves every bit."""
    generator = torch.Generator().manual_seed(1)
    change = 0.5 * torch.randn(WIDTH, generator=generator)
    plain = logits(source)
    assert plain.shape == (*IDS.shape, VOCABULARY)
    after: dict[str, Tensor] = {}
    for kind, point in points.items():
        with editing(source, point, lambda activation: activation + 0):
            assert torch.equal(logits(source), plain), kind
        with editing(source, point, lambda activation: activation + change):
            after[kind] = logits(source)
        assert not torch.equal(after[kind], plain), kind
    for kind, on_input in (("resid_pre", True), ("resid_post", False)):
        with shifting(block(source), change, on_input=on_input):
            assert torch.equal(logits(source), after[kind]), kind
    if points.keys() >= PARTS:
        # The MLP's output is the last term that the block adds.
        torch.testing.assert_close(after["mlp_out"], after["resid_post"], rtol=1e-3, atol=1e-3)
        with (
            editing(source, points["attn_out"], lambda activation: activation + change),
            editing(source, points["mlp_out"], lambda _: found["mlp_out"].clone()),
        ):
            stream = read(source, points["resid_post"], IDS)
        torch.testing.assert_close(stream, found["resid_post"] + change, rtol=1e-4, atol=1e-4)
    if "mlp_in" in points and "mlp_out" in points:
        with editing(source, points["mlp_in"], lambda activation: activation + change):
            assert torch.equal(read(source, points["attn_out"], IDS), found["attn_out"])
            assert not torch.equal(read(source, points["mlp_out"], IDS), found["mlp_out"])


def logits(source: Source) -> Tensor:
    with torch.inference_mode():
        return source.model(IDS, use_cache=False).logits


def block(source: Source) -> nn.Module:
    """The block by its name, found apart from the product's own search."""
    return next(
        m for name, m in source.model.named_modules() if re.fullmatch(rf"(.*\.)?(layers|h|blocks)\.{LAYER}", name)
    )


@contextmanager
def watching(module: nn.Module) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def look(_, args, kwargs, output):
        inputs.append((args[0] if args else kwargs["hidden_states"]).clone())
        outputs.append((output if isinstance(output, Tensor) else output[0]).clone())

    handle = module.register_forward_hook(look, with_kwargs=True)
    yield inputs, outputs
    handle.remove()


@contextmanager
def shifting(module: nn.Module, change: Tensor, *, on_input: bool) -> Iterator[None]:
    def before(_, args, kwargs):
        if args:
            return (args[0] + change, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] + change}

    def after(_, args, output):
        return output + change if isinstance(output, Tensor) else type(output)([output[0] + change, *output[1:]])

    hook = (
        module.register_forward_pre_hook(before, with_kwargs=True) if on_input else module.register_forward_hook(after)
    )
    yield
    hook.remove()
