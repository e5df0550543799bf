"""Finds a point in a transformers model, and reads or replaces the activations there by a forward hook.

The hooks are removed afterwards; the model itself is not modified.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from trainer.errors import SourceError

Kind = Literal["resid_pre", "resid_post", "mlp_in", "mlp_out", "attn_out"]
Edit = Callable[[Tensor], Tensor]
"""Takes activations [batch, position, width] and returns their replacement."""

ATTENTION = (
    "self_attn", "attn", "attention", "self_attention", "temporal_block", "linear_attn", "multi_head_attention",
)  # fmt: skip
MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "mlp_block")
LAST_PROJECTION = ("dense_4h_to_h", "down_proj", "dense", "out_proj")
AFTER_ATTENTION = ("post_self_attn_layernorm", "post_norm1")
AFTER_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm", "post_moe_norm", "post_norm2")


class DecoderModel(Protocol):
    """The parts of a source that are needed to find its hookpoints."""

    @property
    def name(self) -> str:
        """The source's name, for error messages."""
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
    """A kind of activation at a layer of one model."""

    kind: Kind
    layer: int
    block: nn.Module
    module: nn.Module
    """The module that the hook is registered on."""
    on_input: bool
    """Whether the activation is the module's input rather than its output."""


class _StopForward(Exception):
    """Raised inside the forward pass to end it once the activation has been recorded."""


def locate(source: DecoderModel, kind: Kind, layer: int) -> Hookpoint:
    """Find a hookpoint: input or output of a block, input of its MLP, or what attention or the MLP adds.

    `attn_out` and `mlp_out` are the terms added to the residual stream, so they are read after the extra norm of the
    families that have one (Gemma 2 and 3, OLMo 2, GLM 4). Raises SourceError if the layer is out of range or its
    block has no such part.
    """
    blocks = source.blocks
    if not 0 <= layer < len(blocks):
        raise SourceError(
            f"{source.name} has no layer {layer}: its layers are 0 to {len(blocks) - 1}. Choose one of them."
        )
    block = blocks[layer]
    if kind in ("resid_pre", "resid_post"):
        return Hookpoint(kind, layer, block, block, on_input=kind == "resid_pre")
    module = _attention_module(block) if kind == "attn_out" else _mlp_module(block, is_input=kind == "mlp_in")
    if module is None:
        parts = ", ".join(name for name, _ in block.named_children())
        raise SourceError(
            f"{source.name} has no {kind} that can be identified by the names of its parts ({parts}). "
            "Use resid_pre or resid_post instead."
        )
    return Hookpoint(kind, layer, block, module, on_input=kind == "mlp_in")


def read(
    source: DecoderModel,
    hookpoint: Hookpoint,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    stop: bool = True,
) -> Tensor:
    """Activations at a hookpoint [batch, position, width], in the model's dtype and on its device.

    `input_ids` and the mask are [batch, position]. Values at padding positions are meaningless.
    With `stop` the forward pass ends right after the hookpoint. Runs without a cache and without gradients.
    """
    recorded: list[Tensor] = []

    def record(activation: Tensor) -> None:
        # Falcon adds to the MLP's output in place.
        recorded.append(activation if stop else activation.clone())
        if stop:
            raise _StopForward

    with torch.inference_mode(), _hook(source, hookpoint, record), suppress(_StopForward):
        source.body(input_ids=input_ids, attention_mask=_required_mask(attention_mask), use_cache=False)
    assert len(recorded) == 1, "a loaded source's hookpoint runs exactly once in a forward pass"
    return recorded[0]


def read_each(
    source: DecoderModel, hookpoints: Sequence[Hookpoint], input_ids: Tensor, attention_mask: Tensor | None = None
) -> list[Tensor]:
    """Activations at several hookpoints in one forward pass, each as `read` gives it."""
    recorded: dict[int, Tensor] = {}

    def recording(number: int) -> Callable[[Tensor], None]:
        def record(activation: Tensor) -> None:
            recorded[number] = activation.clone()

        return record

    with torch.inference_mode(), ExitStack() as stack:
        for number, hookpoint in enumerate(hookpoints):
            stack.enter_context(_hook(source, hookpoint, recording(number)))
        source.body(input_ids=input_ids, attention_mask=_required_mask(attention_mask), use_cache=False)
    return [recorded[number] for number in range(len(hookpoints))]


@contextmanager
def editing(source: DecoderModel, hookpoint: Hookpoint, edit: Edit) -> Iterator[None]:
    """Context in which every forward pass replaces the activation at the hookpoint by `edit(activation)`.

    `edit` takes and returns [batch, position, width]; when generating with a cache, `position` covers only the new
    tokens. Nested edits apply in the order they were entered. The hook is removed on exit, also after an exception.
    """
    with _hook(source, hookpoint, edit):
        yield


@contextmanager
def _hook(source: DecoderModel, hookpoint: Hookpoint, callback: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call `callback` with the activation; a tensor that it returns replaces the activation."""
    shape: tuple[int, ...] = ()

    def remember_shape(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG001
        nonlocal shape
        shape = tuple((args[0] if args else kwargs["hidden_states"]).shape[:2])

    def call_with_batch(activation: Tensor) -> Tensor | None:
        if activation.dim() == 3:
            return callback(activation)
        # OPT and some mixture-of-experts models flatten the batch before their MLP.
        replacement = callback(_unflattened(source, hookpoint, activation, shape))
        return None if replacement is None else replacement.reshape(activation.shape)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG001
        replacement = call_with_batch(args[0] if args else kwargs["hidden_states"])
        if replacement is None:
            return None
        return ((replacement, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": replacement})

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:  # noqa: ARG001
        # Blocks return a tensor; attention, and blocks of some families, a tuple that begins with it.
        if isinstance(output, Tensor):
            return call_with_batch(output)
        replacement = call_with_batch(output[0])
        return None if replacement is None else _with_first(output, replacement)

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


def _with_first(output: Any, replacement: Tensor) -> Any:
    """A module's tuple or list of outputs with its first one replaced."""
    return [replacement, *output[1:]] if isinstance(output, list) else (replacement, *output[1:])


def _unflattened(source: DecoderModel, hookpoint: Hookpoint, activation: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The activation as [batch, position, width]. Raises SourceError if it is more than one vector per token."""
    if activation.numel() != prod(shape) * activation.shape[-1]:
        raise SourceError(
            f"{source.name}: {hookpoint.kind} is several vectors per token ({list(activation.shape)}), and one "
            "residual stream is read. Choose another model."
        )
    return activation.reshape(*shape, activation.shape[-1])


def _required_mask(attention_mask: Tensor | None) -> Tensor | None:
    """The mask, or None if it hides right padding only, which causal attention ignores anyway.

    Without a mask, torch uses its fast attention kernels.
    """
    if attention_mask is None or attention_mask.shape[1] < 2:
        return attention_mask
    right_padded = bool((attention_mask[:, 1:] <= attention_mask[:, :-1]).all())
    return None if right_padded else attention_mask


def _attention_module(block: nn.Module) -> nn.Module | None:
    """The module whose output attention adds to the residual stream."""
    after = _child(block, AFTER_ATTENTION)
    if after is None and _child(block, AFTER_MLP) is not None:
        # With a norm after the MLP, this is the norm after attention; without, it is the norm before the MLP.
        after = _child(block, ("post_attention_layernorm",))
    return after or _without_residual(_child(block, ATTENTION))


def _mlp_module(block: nn.Module, *, is_input: bool) -> nn.Module | None:
    """The module whose input (if `is_input`) or output is that of the MLP."""
    mlp = _child(block, MLP)
    if mlp is None:  # OPT has the two layers of its MLP in the block itself
        return _child(block, ("fc1" if is_input else "fc2",))
    return mlp if is_input else _child(block, AFTER_MLP) or _without_residual(mlp)


def _child(block: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    """The first child with one of these names."""
    return next((child for name in names if (child := getattr(block, name, None)) is not None), None)


def _without_residual(module: nn.Module | None) -> nn.Module | None:
    """The last projection of a module that adds the residual stream itself (BLOOM, MPT), else the module."""
    if module is None or "residual" not in inspect.signature(module.forward).parameters:
        return module
    return _child(module, LAST_PROJECTION)
