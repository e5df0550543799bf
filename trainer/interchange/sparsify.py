"""sparsify: one TopK autoencoder over all sources side by side; written only.

Its input is every source's activation concatenated, in the order of the crosscoder, so widths may differ. It subtracts
the decoder's bias from its input, which is made good in the encoder's bias.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.interchange.folding import ranked_by_activation
from trainer.interchange.layout import disassembled, refuse_differences
from trainer.run.folder import published, write_json

TOOL = "sparsify"
WRITE_LOSSES = (
    "k features are kept per row in place of a threshold. Normalisation is folded into the weights. What a feature "
    "does not read or write becomes zeros."
)


def write(crosscoder: Crosscoder, folder: Path, *, k: int | None = None) -> None:
    """Write cfg.json and sae.safetensors.

    Features above a threshold become the `k` strongest of each row: the caller has to say so by giving k. Raises
    CrosscoderError without k, or for sources that are differences of others.
    """
    refuse_differences(crosscoder, TOOL)
    plain, kept = ranked_by_activation(crosscoder, k, TOOL)
    own = disassembled(plain)
    encoder, decoder_bias = torch.cat(own.encoder, dim=1), torch.cat(own.decoder_bias)
    tensors = {
        "encoder.weight": encoder,
        "encoder.bias": (own.encoder_bias.double() + encoder.double() @ decoder_bias.double()).float(),
        "W_dec": torch.cat(own.decoder, dim=1),
        "b_dec": decoder_bias,
    }
    with published(folder / "sae.safetensors") as draft:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, draft)
    settings: dict[str, Any] = {
        "activation": "topk",
        "expansion_factor": 1,
        "normalize_decoder": False,
        "num_latents": plain.features,
        "k": kept,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": encoder.shape[1],
        "crossdiff": {"sources": [{"name": source, "width": width} for source, width in plain.widths.items()]},
    }
    write_json(folder / "cfg.json", settings)
