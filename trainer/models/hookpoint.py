"""Hookpoint: a place in a model where activations are read, or changed, while it runs.

Plain forward hooks on the modules of a transformers model; the model itself is never altered.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from trainer.errors import SourceError

Kind = Literal["resid_pre", "resid_post", "mlp_in", "mlp_out", "attn_out"]
Edit = Callable[[Tensor], Tensor]
"""Takes activations [batch, position, width] and returns what stands there instead."""

ATTENTION = ("self_attn", "attn", "attention", "self_attention", "temporal_block")
MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")
LAST_PROJECTION = ("dense_4h_to_h", "down_proj", "dense", "out_proj")
AFTER_ATTENTION = ("post_self_attn_layernorm",)
AFTER_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm", "post_moe_norm")


class Blocks(Protocol):
    """What is needed of a source to find its hookpoints."""

    @property
    def name(self) -> str:
        """What people call the source."""
        ...

    @property
    def body(self) -> nn.Module:
        """The model without its head."""
        ...

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks in order."""
        ...


@dataclass(frozen=True)
class Hookpoint:
    """A kind of activation at a layer, found in one model."""

    kind: Kind
    layer: int
    block: nn.Module
    module: nn.Module
    """The module the hook stands at."""
    on_input: bool
    """Whether the activation goes into the module rather than comes out of it."""


class _Reached(Exception):
    """Thrown through the model's forward pass once the hookpoint has been read."""


def locate(source: Blocks, kind: Kind, layer: int) -> Hookpoint:
    """Find a hookpoint: input or output of a block, input of its MLP, or what attention or MLP add.

    `attn_out` and `mlp_out` are what is added to the residual stream, so they come after the extra norm of
    those families that have one there (Gemma 2 and 3, OLMo 2, GLM 4). Raises SourceError when the layer is
    out of range or its block has no such part.
    """
    blocks = source.blocks
    if not 0 <= layer < len(blocks):
        raise SourceError(
            f"{source.name} has no layer {layer}: its layers are 0 to {len(blocks) - 1}. Choose one of them."
        )
    block = blocks[layer]
    if kind in ("resid_pre", "resid_post"):
        return Hookpoint(kind, layer, block, block, on_input=kind == "resid_pre")
    module = _attention_end(block) if kind == "attn_out" else _mlp_end(block, first=kind == "mlp_in")
    if module is None:
        parts = ", ".join(name for name, _ in block.named_children())
        raise SourceError(
            f"{source.name} has no {kind} that can be told from the names of its parts ({parts}). "
            "Use resid_pre or resid_post instead."
        )
    return Hookpoint(kind, layer, block, module, on_input=kind == "mlp_in")


def read(
    source: Blocks, hookpoint: Hookpoint, input_ids: Tensor, attention_mask: Tensor | None = None, *, stop: bool = True
) -> Tensor:
    """Activations at a hookpoint [batch, position, width], in the model's dtype and on its device.

    `input_ids` and the mask are [batch, position]. Positions that are padding hold numbers without meaning.
    With `stop` the forward pass ends right after the hookpoint; nothing is cached, no gradient is kept.
    """
    found: list[Tensor] = []

    def keep(activation: Tensor) -> None:
        found.append(activation)
        if stop:
            raise _Reached

    with torch.inference_mode(), _hooked(hookpoint, keep), suppress(_Reached):
        source.body(input_ids=input_ids, attention_mask=_needed(source, attention_mask), use_cache=False)
    assert len(found) == 1, "a block runs exactly once in a forward pass"
    return found[0]


@contextmanager
def editing(source: Blocks, hookpoint: Hookpoint, edit: Edit) -> Iterator[None]:  # noqa: ARG001
    """Within this context every forward pass continues from `edit(activation)` at the hookpoint.

    `edit` takes and returns [batch, position, width]; while generating with a cache, `position` counts only
    the new tokens. Edits stack in the order they were begun. The hook is gone afterwards, whatever happens.
    """
    with _hooked(hookpoint, edit):
        yield


@contextmanager
def _hooked(hookpoint: Hookpoint, see: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Show the activation to `see`; if that returns a tensor, it takes the activation's place."""
    shape: tuple[int, ...] = ()

    def remember_shape(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG001
        nonlocal shape
        shape = tuple((args[0] if args else kwargs["hidden_states"]).shape[:2])

    def shown(activation: Tensor) -> Tensor | None:
        if activation.dim() == 3:
            return see(activation)
        # OPT and some mixtures of experts flatten the batch before their MLP.
        seen = see(activation.reshape(*shape, activation.shape[-1]))
        return None if seen is None else seen.reshape(activation.shape)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG001
        seen = shown(args[0] if args else kwargs["hidden_states"])
        if seen is None:
            return None
        return ((seen, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": seen})

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:  # noqa: ARG001
        # Blocks give a tensor or, in some families and for attention, a tuple that begins with it.
        if isinstance(output, Tensor):
            return shown(output)
        seen = shown(output[0])
        return None if seen is None else (seen, *output[1:])

    handles = [hookpoint.block.register_forward_pre_hook(remember_shape, with_kwargs=True)]
    if hookpoint.on_input:
        handles.append(hookpoint.module.register_forward_pre_hook(before, with_kwargs=True))
    else:
        handles.append(hookpoint.module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _needed(source: Blocks, attention_mask: Tensor | None) -> Tensor | None:
    """The mask, unless all it hides stands at the end, where causal attention never looks from before.

    Without a mask the fast attention kernels apply.
    """
    if attention_mask is None or attention_mask.shape[1] < 2:
        return attention_mask
    if getattr(getattr(source.body, "config", None), "use_bidirectional_attention", False):
        return attention_mask
    right_padded = bool((attention_mask[:, 1:] <= attention_mask[:, :-1]).all())
    return None if right_padded else attention_mask


def _attention_end(block: nn.Module) -> nn.Module | None:
    """The module whose output attention adds to the residual stream."""
    after = _child(block, AFTER_ATTENTION)
    if after is None and _child(block, AFTER_MLP) is not None:
        # Beside a norm after the MLP this is the norm after attention; alone it is the one before the MLP.
        after = _child(block, ("post_attention_layernorm",))
    return after or _without_residual(_child(block, ATTENTION))


def _mlp_end(block: nn.Module, *, first: bool) -> nn.Module | None:
    """The module whose input (`first`) or output is that of the MLP."""
    mlp = _child(block, MLP)
    if mlp is None:  # OPT keeps the two halves of its MLP in the block itself
        return _child(block, ("fc1" if first else "fc2",))
    return mlp if first else _child(block, AFTER_MLP) or _without_residual(mlp)


def _child(block: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    """The first child with one of these names."""
    return next((child for name in names if (child := getattr(block, name, None)) is not None), None)


def _without_residual(module: nn.Module | None) -> nn.Module | None:
    """The last projection of a module that adds the residual stream by itself (BLOOM, MPT), else the module."""
    if module is None or "residual" not in inspect.signature(module.forward).parameters:
        return module
    return _child(module, LAST_PROJECTION)
