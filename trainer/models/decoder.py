"""Finds the decoder in a loaded model: its body, its blocks and the norm after them."""

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel

from trainer.errors import SourceError

FINAL_NORMS = (
    "norm", "final_layer_norm", "final_layernorm", "ln_f", "norm_f", "embedding_norm",
    "final_norm", "ln_out", "out_norm", "layer_norm", "layernorm",
)  # fmt: skip


def find_body(name: str, model: PreTrainedModel, layers: int) -> tuple[nn.Module, nn.ModuleList]:
    """The model without its head, and its decoder blocks: the first ModuleList in it with one entry per layer.

    `name` is the source's, for error messages. Raises SourceError if there is no such list.
    """
    for body in _bodies(model):
        for module in body.modules():
            if isinstance(module, nn.ModuleList) and len(module) == layers:
                return body, module
    raise SourceError(
        f"{name}: {type(model).__name__} does not hold its {layers} layers in one list. Choose another model."
    )


def find_final_norm(body: nn.Module) -> nn.Module:
    """The norm after the last block by its usual names; the identity if there is none."""
    return next((norm for name in FINAL_NORMS if (norm := getattr(body, name, None)) is not None), nn.Identity())


def _bodies(model: PreTrainedModel) -> Iterator[nn.Module]:
    """Parts of a model that may be all of it but the head, likeliest first."""
    decoder = model.get_decoder()
    if decoder is not model:  # some families give the whole model, others a part of the head
        yield decoder
    yield from model.children()
