"""saelens: one sparse autoencoder per source, to be opened by SAELens; written only.

SAELens has no crosscoder. A shared feature's activation is a sum over all the sources it reads, and a file of one
source can only hold that source's part: what it encodes is exact when all other sources stand at their mean, and for
features that read no other source. Decoders are exact always.
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
    summed,
    thresholds,
    with_scores_as_activations,
)
from trainer.interchange.layout import disassembled, kept_per_row, need_file_name, refuse_differences
from trainer.run.folder import published, write_json

TOOL = "saelens"
WRITE_LOSSES = (
    "One autoencoder per source: codes are joint in the crosscoder and cannot be here. Each is exact where the other "
    "sources stand at their mean. Normalisation is folded into the weights."
)
LAYOUT = "6.0.0"
"""Version whose settings these are; without it, SAELens takes them for older ones and drops the metadata."""
NOTE = (
    "From a crosscoder over {sources}: a feature's activation there is a sum over all of them. This file holds the "
    "part of {source} and takes the others to stand at their mean. Features have the crosscoder's numbers."
)


def write(crosscoder: Crosscoder, folder: Path, *, origins: dict[str, dict[str, Any]] | None = None) -> None:
    """Write a folder for every source with cfg.json and sae_weights.safetensors.

    `origins` are entries of each source's metadata, such as model_name and hook_name. Raises CrosscoderError for
    sources that are differences of others, or several numbers of features kept per row.
    """
    refuse_differences(crosscoder, TOOL)
    for source in crosscoder.sources:
        need_file_name(source)
    kept = kept_per_row(crosscoder)
    plain = summed(crosscoder) if kept is None else with_scores_as_activations(summed(crosscoder))
    own = disassembled(plain)
    norms = scores_per_activation(plain)
    fires = (norms > 0) | (thresholds(plain) == 0)
    bound = thresholds(plain) / torch.where(norms > 0, norms, 1.0)
    for place, source in enumerate(plain.sources):
        normaliser, encoder = plain.normaliser[source], own.encoder[place] * fires[:, None]
        reads = _readers(plain, source) & fires
        tensors = {
            "W_enc": (encoder * normaliser.scale).T,
            "W_dec": own.decoder[place] / normaliser.scale,
            "b_enc": (own.encoder_bias - encoder @ (normaliser.mean * normaliser.scale)) * reads,
            "b_dec": own.decoder_bias[place] / normaliser.scale + normaliser.mean,
        }
        settings: dict[str, Any] = {"architecture": "standard"}
        if kept is not None:
            settings = {"architecture": "topk", "k": kept, "rescale_acts_by_decoder_norm": False}
        elif not fires_when_positive(plain):
            settings, tensors["threshold"] = {"architecture": "jumprelu"}, bound
        with published(folder / source / "sae_weights.safetensors") as draft:
            save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, draft)
        note = NOTE.format(sources=", ".join(plain.sources), source=source)
        settings |= {
            "d_in": plain.widths[source],
            "d_sae": plain.features,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": False,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": {"sae_lens_version": LAYOUT, **(origins or {}).get(source, {}), "note": note},
        }
        write_json(folder / source / "cfg.json", settings)


def _readers(crosscoder: Crosscoder, source: str) -> Tensor:
    """Which features read a source, bool [F]."""
    return torch.cat([torch.full((group.features,), source in group.reads) for group in crosscoder.groups])
