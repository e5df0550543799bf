"""Exports one TopK autoencoder over the concatenated sources for sparsify; write-only.

Its input is the concatenation of the sources' activations in the order of the crosscoder, so widths may differ. It
subtracts the decoder bias from its input, which the encoder bias compensates.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.interchange.folding import for_top_k
from trainer.interchange.layout import refuse_differences, stack_weights
from trainer.run.folder import atomic_write, write_json

TOOL = "sparsify"
WRITE_LOSSES = (
    "k features are kept per row in place of a threshold. Normalisation is folded into the weights. What a feature "
    "does not read or write becomes zeros."
)


def write(crosscoder: Crosscoder, folder: Path, *, k: int | None = None) -> None:
    """Write cfg.json and sae.safetensors.

    A crosscoder with thresholds is written as TopK with the `k` given. Raises
    CrosscoderError without k, or for sources that are differences of others.
    """
    refuse_differences(crosscoder, TOOL)
    folded, row_k = for_top_k(crosscoder, k, TOOL)
    weights = stack_weights(folded)
    encoder, decoder_bias = torch.cat(weights.encoder, dim=1), torch.cat(weights.decoder_bias)
    tensors = {
        "encoder.weight": encoder,
        "encoder.bias": (weights.encoder_bias.double() + encoder.double() @ decoder_bias.double()).float(),
        "W_dec": torch.cat(weights.decoder, dim=1),
        "b_dec": decoder_bias,
    }
    with atomic_write(folder / "sae.safetensors") as draft:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, draft)
    settings: dict[str, Any] = {
        "activation": "topk",
        "expansion_factor": 1,
        "normalize_decoder": False,
        "num_latents": folded.features,
        "k": row_k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": encoder.shape[1],
        "crossdiff": {"sources": [{"name": source, "width": width} for source, width in folded.widths.items()]},
    }
    write_json(folder / "cfg.json", settings)
