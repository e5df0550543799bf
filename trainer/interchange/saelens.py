"""Exports one sparse autoencoder per source for SAELens; write-only.

SAELens has no crosscoder. A shared feature's activation is a sum over all the sources it reads, and the file of one
source holds only that source's term: encodings are exact for features that read no other source, and for the others
when all other sources are at their mean. Decoders are always exact.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.interchange.folding import (
    fires_when_positive,
    scores_per_activation,
    thresholds,
    with_scores_as_activations,
    with_summed_inputs,
)
from trainer.interchange.layout import k_per_row, refuse_differences, require_file_name, stack_weights
from trainer.run.folder import atomic_write, write_json

TOOL = "saelens"
WRITE_LOSSES = (
    "One autoencoder per source: codes are joint in the crosscoder and cannot be here. Each is exact where the other "
    "sources are at their mean. Normalisation is folded into the weights."
)
LAYOUT = "6.0.0"
"""Version of the settings' schema; without it, SAELens assumes an older one and drops the metadata."""
NOTE = (
    "From a crosscoder over {sources}: a feature's activation there is a sum over all of them. This file holds the "
    "part of {source} and takes the others to stand at their mean. Features have the crosscoder's numbers."
)


def write(crosscoder: Crosscoder, folder: Path, *, origins: dict[str, dict[str, Any]] | None = None) -> None:
    """Write a folder per source with cfg.json and sae_weights.safetensors.

    `origins` are additional metadata by source, such as model_name and hook_name. Raises CrosscoderError for
    sources that are differences of others, or several numbers of features kept per row.
    """
    refuse_differences(crosscoder, TOOL)
    for source in crosscoder.sources:
        require_file_name(source)
    row_k = k_per_row(crosscoder)
    folded = (
        with_summed_inputs(crosscoder) if row_k is None else with_scores_as_activations(with_summed_inputs(crosscoder))
    )
    weights = stack_weights(folded)
    norms = scores_per_activation(folded)
    fires = (norms > 0) | (thresholds(folded) == 0)
    activation_thresholds = thresholds(folded) / torch.where(norms > 0, norms, 1.0)
    for index, source in enumerate(folded.sources):
        normaliser, encoder = folded.normaliser[source], weights.encoder[index] * fires[:, None]
        reads = _readers(folded, source) & fires
        tensors = {
            "W_enc": (encoder * normaliser.scale).T,
            "W_dec": weights.decoder[index] / normaliser.scale,
            "b_enc": (weights.encoder_bias - encoder @ (normaliser.mean * normaliser.scale)) * reads,
            "b_dec": weights.decoder_bias[index] / normaliser.scale + normaliser.mean,
        }
        settings: dict[str, Any] = {"architecture": "standard"}
        if row_k is not None:
            settings = {"architecture": "topk", "k": row_k, "rescale_acts_by_decoder_norm": False}
        elif not fires_when_positive(folded):
            settings, tensors["threshold"] = {"architecture": "jumprelu"}, activation_thresholds
        with atomic_write(folder / source / "sae_weights.safetensors") as draft:
            save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, draft)
        note = NOTE.format(sources=", ".join(folded.sources), source=source)
        settings |= {
            "d_in": folded.widths[source],
            "d_sae": folded.features,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": {"sae_lens_version": LAYOUT, **(origins or {}).get(source, {}), "note": note},
        }
        write_json(folder / source / "cfg.json", settings)


def _readers(crosscoder: Crosscoder, source: str) -> Tensor:
    """Features that read a source, bool [F]."""
    return torch.cat([torch.full((group.features,), source in group.reads) for group in crosscoder.groups])
