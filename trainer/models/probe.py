"""Runs a freshly loaded model on a few words, and checks that it is one that Crossdiff can read.

Everything that the other modules find by the names of a model's parts is checked here by what the parts compute.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.errors import SourceError
from trainer.models.hookpoint import Hookpoint, Kind, editing, locate
from trainer.models.refusal import first_line

if TYPE_CHECKING:
    from trainer.models.source import Source

WORDS = "The village was once rich, and its people were known for their bread."
TOKENS = 16
"""Tokens of the words that are read."""
OTHER_PART: dict[Kind, Kind] = {"attn_out": "mlp_out", "mlp_out": "attn_out"}
RANKED = 4
"""Positions whose logits are compared."""
CAUSAL_TOLERANCE, SUM_TOLERANCE, RANK_CORRELATION = 0.05, 0.05, 0.98


def check_source(source: "Source") -> str | None:
    """Check a source on a few words, and return why its logits cannot be explained, or None if they can.

    Raises SourceError if the model cannot be run on text alone, reads both ways, computes no finite number at the
    hookpoint, or if what is found there is not one stream of activations, or not what the block adds to it.
    """
    kind, layer = source.recipe.hookpoint, source.recipe.layer
    kinds: list[Kind] = [kind, "resid_pre", "resid_post"]
    points: dict[str, Hookpoint] = {one: locate(source, one, layer) for one in kinds}
    points["last"] = locate(source, "resid_post", source.layers - 1)
    if other := OTHER_PART.get(kind):
        with suppress(SourceError):  # then the check of the sum says so
            points[other] = locate(source, other, layer)
    seen, logits = _run(source, points)
    _check_causal(source, seen["last"])
    _check_finite(source, seen[kind])
    if other:
        _check_sum(source, seen)
    return _logit_obstacle(source, seen["last"][0, -RANKED:], logits[0, -RANKED:])


def _run(source: "Source", points: Mapping[str, Hookpoint]) -> tuple[dict[str, Tensor], Tensor]:
    """Activations [2, position, width] by point, and logits; the two texts differ in their last token."""
    ids = _tokens(source)
    seen: dict[str, list[Tensor]] = {point: [] for point in points}
    try:
        with torch.inference_mode(), ExitStack() as stack:
            for point, hookpoint in points.items():
                stack.enter_context(_recording(source, hookpoint, seen[point]))
            logits = source.model(input_ids=ids.to(source.device), use_cache=False).logits
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, TypeError, IndexError, AttributeError, KeyError, NotImplementedError) as error:
        raise SourceError(
            f"{source.name}: {type(source.model).__name__} cannot be run on text alone ({first_line(error)}). "
            "Choose another model."
        ) from error
    for point, found in seen.items():
        if len(found) != 1:
            raise SourceError(
                f"{source.name}: {points[point].kind} runs {len(found)} times in one forward pass of "
                f"{type(source.model).__name__}. Use another hookpoint or layer."
            )
        if tuple(found[0].shape) != (*ids.shape, source.width):
            raise SourceError(
                f"{source.name}: {points[point].kind} is {list(found[0].shape)} for {ids.numel()} tokens, where one "
                f"vector of width {source.width} per token is read. Use another hookpoint, or another model."
            )
    return {point: found[0].float() for point, found in seen.items()}, logits.float()


@contextmanager
def _recording(source: "Source", hookpoint: Hookpoint, into: list[Tensor]) -> Iterator[None]:
    def record(activation: Tensor) -> Tensor:
        into.append(activation.clone())
        return activation

    with editing(source, hookpoint, record):
        yield


def _tokens(source: "Source") -> Tensor:
    """Token ids [2, position] of the words, the last one changed in the second row."""
    rows = source.model.get_input_embeddings().weight.shape[0]
    encoded = source.tokenizer(WORDS, add_special_tokens=False)["input_ids"]
    ids = [number for number in encoded if number < rows][: TOKENS - 1]
    ids = [*([] if source.bos_id is None else [source.bos_id]), *ids]
    return torch.tensor([[*ids, ids[-1]], [*ids, ids[0]]])


def _check_causal(source: "Source", last: Tensor) -> None:
    before = last[:, :-1]
    # Both texts are the same up to here; sums over experts may be rounded in another order.
    if bool(((before[0] - before[1]).abs() > CAUSAL_TOLERANCE * before.std()).any()):
        raise SourceError(
            f"{source.name}: {type(source.model).__name__} reads text both ways: what comes later changes what was "
            "read before. Choose a causal language model."
        )


def _check_finite(source: "Source", activation: Tensor) -> None:
    if not bool(torch.isfinite(activation).all(dim=-1).any()):
        raise SourceError(not_finite(source, "for every token of a short text"))


def not_finite(source: "Source", where: str) -> str:
    """Message for activations that are not finite; `where` says of which rows."""
    dtype = str(source.dtype).removeprefix("torch.")
    remedy = (
        "Use `dtype: bfloat16` or float32." if dtype == "float16" else "Check its weights, or use `dtype: float32`."
    )
    if dtype == "float32":
        remedy = "Its weights are broken, or overflow; give another copy of the model."
    return (
        f"{source.name}: its activations at {source.recipe.hookpoint}.{source.recipe.layer} are NaN or infinite in "
        f"{dtype} {where}. {remedy}"
    )


def _check_sum(source: "Source", seen: Mapping[str, Tensor]) -> None:
    """Raise SourceError unless attention and MLP are the terms that the block adds to the residual stream."""
    added = [seen[part] for part in OTHER_PART if part in seen]
    missing = (seen["resid_post"] - seen["resid_pre"] - sum(added)).norm(dim=-1)
    rounding = 4 * torch.finfo(source.dtype).eps * seen["resid_post"].norm(dim=-1)
    if bool((missing > SUM_TOLERANCE * torch.stack(added).norm(dim=-1).sum(dim=0) + rounding).any()):
        raise SourceError(
            f"{source.name}: the blocks of {type(source.model).__name__} do not add their attention and their MLP to "
            f"the residual stream as they are, so {source.recipe.hookpoint} is not what changes it. "
            "Use resid_pre or resid_post instead."
        )


def _logit_obstacle(source: "Source", stream: Tensor, logits: Tensor) -> str | None:
    """Why final norm and unembedding do not map the last residual stream to the logits; None if they do.

    Ranks are compared, because some families scale or cap their logits.
    """
    head = source.model.get_output_embeddings()
    if head is None:
        return "it has no unembedding"
    if head.weight.dim() != 2 or head.weight.shape[1] != source.width:
        return f"its unembedding takes {head.weight.shape[-1]} numbers and its residual stream has {source.width}"
    with torch.inference_mode():
        expected = head(source.final_norm(stream.to(source.dtype))).float()
    if expected.shape != logits.shape or not bool(torch.isfinite(logits).all()):
        return "its logits are not finite" if expected.shape == logits.shape else "its logits have another shape"
    if bool((_rank_correlation(expected, logits) < RANK_CORRELATION).any()):
        return "its logits are not its unembedding of the normed residual stream"
    return None


def _rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's correlation of the last axis [positions]."""
    ranks = torch.stack([x.argsort(dim=-1).argsort(dim=-1).double() for x in (one, other)])
    centred = ranks - ranks.mean(dim=-1, keepdim=True)
    return (centred[0] * centred[1]).sum(dim=-1) / (centred[0].square().sum(dim=-1) + 1e-9)
