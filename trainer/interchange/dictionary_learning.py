"""Checkpoints of the crosscoders in forks of dictionary_learning, including the DFC fork.

The classes are CrossCoder and BatchTopKCrossCoder; the files are `model_final.pt`, `checkpoint_{step}.pt` or
`model.safetensors`, with `config.json`. A feature is active when its activation times the code normalisation exceeds
the threshold; weights are in normalised space, as in Crossdiff.
"""

import math
import reprlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.normalisation import Normaliser
from trainer.errors import CrosscoderError
from trainer.interchange.folding import (
    fires_when_positive,
    scores_per_activation,
    with_one_threshold,
    with_rescaled_sources,
    with_scores_as_activations,
    with_summed_inputs,
)
from trainer.interchange.layout import (
    Partition,
    Weights,
    assemble_crosscoder,
    common_width,
    dfc_partition,
    k_per_row,
    refuse_differences,
    source_names,
    stack_weights,
)
from trainer.interchange.tensor_files import TensorFile, read_settings, read_tensors, write_tensors
from trainer.run.folder import write_json

TOOL = "dictionary-learning"
READ_LOSSES = "k and the history of training are not kept. DECOUPLED codes (one per source) are refused."
WRITE_LOSSES = (
    "Features of a DFC are renumbered: exclusive ones first. Ranking by the largest norm, and thresholds that differ, "
    "are folded into the activations. k is written as 0 unless given."
)

RANKINGS = {1: "sum_of_norms", 2: "root_sum_of_squares", 4: "activation"}
"""Crossdiff's `rank_by` by `code_normalization_id`."""
NORMALISATION_IDS = {"CROSSCODER": 1, "SAE": 2, "MIXED": 3, "NONE": 4, "DECOUPLED": 5}
MIXED, DECOUPLED = 3, 5
EPSILON = 1e-8
"""The tool adds this to a scale before dividing by it."""
SMALL_SCALE = 1e-2
"""Below this scale, EPSILON matters in fp32."""
ENTRIES = (
    "encoder.weight",
    "encoder.bias",
    "decoder.weight",
    "decoder.bias",
    "code_normalization_id",
    "target_rms",
    "activation_mean",
    "activation_std",
    "activation_global_scale",
    "k",
    "threshold",
    "_partition_config",
)


class _Scaling(NamedTuple):
    """The tool's normalisation: input (x - mean) * scale, output y / (scale + EPSILON) + mean."""

    mean: Tensor
    """[S, W]."""
    scale: Tensor
    """[S] fp64."""
    neuron: Tensor | None
    """Standard deviation per neuron [S, W] to divide by instead of the scale; only in old files, None otherwise."""


def find(path: Path) -> Path | None:
    """The newest weights file of this format at a path to a folder or file, or None."""
    if path.is_file():
        known = path.name in ("model.safetensors", "model_final.pt") or path.match("checkpoint_*.pt")
        return path if known else None
    for name in ("model_final.pt", "model.safetensors"):
        if (path / name).is_file():
            return path / name
    steps = [file for file in path.glob("checkpoint_*.pt") if file.stem.rpartition("_")[2].isdecimal()]
    return max(steps, key=lambda file: int(file.stem.rpartition("_")[2]), default=None)


def read(path: Path, *, sources: Sequence[str] = (), code_normalization: str = "") -> Crosscoder:
    """Read a checkpoint: its folder, or its weights file with config.json beside it.

    `code_normalization` (CROSSCODER, SAE, MIXED or NONE) is for old files without it; the default is CROSSCODER.
    Raises CrosscoderError for a damaged or unsafe file, or one that Crossdiff cannot hold.
    """
    file = read_tensors(find(path) or path)
    settings = read_settings(file.path.with_name("config.json"))
    file.require_known(ENTRIES)
    count, width, features = file.raw("encoder.weight", ("sources", "width", "features")).shape
    names = source_names(sources, settings, count, file.path)
    scaling = _scaling(file, settings, count, width)
    mean = dict(zip(names, scaling.mean, strict=True))
    weights = _weights(file, count, width, features)
    for index, scale in enumerate(scaling.scale.tolist()):
        weights.encoder[index] *= scale / _divisor(scale)
    crosscoder = assemble_crosscoder(
        weights,
        _partition(file, settings, count, features).groups(names),
        {name: Normaliser(mean[name], _divisor(float(s))) for name, s in zip(names, scaling.scale, strict=True)},
        threshold=_threshold(file),
        rank_by="sum_of_norms",
        origin=file.path,
    )
    crosscoder = _with_ranking(crosscoder, _normalisation_id(file, code_normalization), settings, file.path)
    if scaling.neuron is None:
        return crosscoder
    folded = crosscoder if fires_when_positive(crosscoder) else with_scores_as_activations(crosscoder)
    return with_rescaled_sources(folded, {name: 1 / std for name, std in zip(names, scaling.neuron, strict=True)})


def write(crosscoder: Crosscoder, folder: Path, *, k: int = 0) -> None:
    """Write model_final.pt and config.json, for `from_pretrained` of the class that config.json names.

    Raises CrosscoderError when widths differ, for groups other than one shared and one exclusive to each of two
    sources, or when k features are kept per row.
    """
    refuse_differences(crosscoder, TOOL)
    partition, order = dfc_partition(crosscoder, TOOL)
    width = common_width(crosscoder, TOOL)
    if k_per_row(crosscoder) is not None:
        raise CrosscoderError(f"{TOOL} keeps no fixed number of features per row. Export it as antebe or sparsify.")
    folded, threshold = with_one_threshold(with_summed_inputs(crosscoder), TOOL)
    if folded.rank_by not in RANKINGS.values():
        folded = with_scores_as_activations(folded)
    weights = stack_weights(folded)
    ranking = next(number for number, rank_by in RANKINGS.items() if rank_by == folded.rank_by)
    entries: dict[str, Any] = {
        "encoder.weight": torch.empty(len(weights.encoder), width, crosscoder.features),
        "encoder.bias": weights.encoder_bias[order],
        "decoder.weight": torch.stack([block[order] for block in weights.decoder]),
        "decoder.bias": torch.stack(weights.decoder_bias),
        "code_normalization_id": torch.tensor(ranking),
        **_normaliser_entries(folded, width),
    }
    for index, source in enumerate(folded.sources):
        scale = folded.normaliser[source].scale
        entries["encoder.weight"][index] = weights.encoder[index][order].T * (scale / _inverse_divisor(scale))
    if threshold > 0:
        entries |= {"k": torch.tensor(k, dtype=torch.int32), "threshold": torch.tensor(threshold)}
    exclusive = _exclusive_shares(partition, crosscoder.features)
    if exclusive:
        entries["_partition_config"] = {"dict_size": crosscoder.features, **exclusive}
    write_tensors(folder / "model_final.pt", entries)
    family = ("DedicatedFeature" if exclusive else "") + ("BatchTopK" if threshold > 0 else "") + "CrossCoder"
    trainer_settings = {
        "dict_class": family,
        "activation_dim": width,
        "dict_size": crosscoder.features,
        "num_layers": len(crosscoder.sources),
        "code_normalization": next(name for name, number in NORMALISATION_IDS.items() if number == ranking),
        "target_rms": 1.0,
        **exclusive,
    }
    write_json(
        folder / "config.json", {"trainer": trainer_settings, "crossdiff": {"sources": list(crosscoder.sources)}}
    )


def _weights(file: TensorFile, count: int, width: int, features: int) -> Weights:
    encoder = file.tensor("encoder.weight", (count, width, features))
    return Weights(
        [block.T.contiguous() for block in encoder],
        list(file.tensor("decoder.weight", (count, features, width))),
        file.tensor("encoder.bias", (features,)),
        list(file.tensor("decoder.bias", (count, width))),
    )


def _threshold(file: TensorFile) -> float:
    """The threshold; one that was never set (-1) acts as 0."""
    if "threshold" not in file:
        return 0.0
    if getattr(file.entries["threshold"], "ndim", 0):
        raise CrosscoderError(
            f"{file.path} has one code per source (DECOUPLED), and a feature of Crossdiff has one for all sources. "
            "Train with another code_normalization to compare sources."
        )
    return max(float(file.tensor("threshold", ())), 0.0)


def _normalisation_id(file: TensorFile, given: str) -> int:
    if "code_normalization_id" in file:
        return int(file.tensor("code_normalization_id", ()))
    if given and given.upper() not in NORMALISATION_IDS:
        raise CrosscoderError(f"No code normalization is named {given!r}. Known are {', '.join(NORMALISATION_IDS)}.")
    return NORMALISATION_IDS[given.upper() or "CROSSCODER"]


def _with_ranking(crosscoder: Crosscoder, number: int, settings: dict[str, Any], origin: Path) -> Crosscoder:
    """The crosscoder with the checkpoint's ranking; `number` is its code_normalization_id."""
    if number in RANKINGS:
        crosscoder.rank_by = RANKINGS[number]
    elif number == MIXED and not fires_when_positive(crosscoder):
        return with_scores_as_activations(crosscoder, _mixed_norms(crosscoder, settings, origin))
    elif number in (MIXED, DECOUPLED):
        crosscoder.rank_by = "activation"
    else:
        raise CrosscoderError(
            f"{origin}: code_normalization_id {number} is unknown; known are 1 to 5. Update Crossdiff."
        )
    return crosscoder


def _mixed_norms(crosscoder: Crosscoder, settings: dict[str, Any], origin: Path) -> Tensor:
    """MIXED's score per activation [F]: a sum of two norms with weights from the settings."""
    total = torch.zeros(crosscoder.features)
    for rank_by, key, default in (
        ("root_sum_of_squares", "code_normalization_alpha_sae", 1.0),
        ("sum_of_norms", "code_normalization_alpha_cc", 0.1),
    ):
        weight = _trainer_settings(settings).get(key, default)
        if not isinstance(weight, int | float) or not math.isfinite(weight):
            raise CrosscoderError(
                f"{origin}: config.json beside it gives {key} as {reprlib.repr(weight)}. Copy it again."
            )
        total += weight * scores_per_activation(replace(crosscoder, rank_by=rank_by))
    return total


def _trainer_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The crosscoder's settings: under `trainer` after training, at the top level on the hub."""
    trainer = settings.get("trainer", settings)
    return trainer if isinstance(trainer, dict) else {}


def _scaling(file: TensorFile, settings: dict[str, Any], count: int, width: int) -> _Scaling:
    """The checkpoint's normalisation; the identity when its statistics are absent or NaN."""
    mean, ones = torch.zeros(count, width), torch.ones(count, dtype=torch.float64)
    if "activation_mean" not in file or "activation_std" not in file:
        return _Scaling(mean, ones, None)
    mean = file.raw("activation_mean", (count, width)).float()
    deviation = file.raw("activation_std", (count, width)).float()
    if bool(mean.isnan().any()) or bool(deviation.isnan().any()):
        return _Scaling(torch.zeros(count, width), ones, None)
    if _trainer_settings(settings).get("keep_relative_variance") is False:
        return _Scaling(mean, ones, deviation + EPSILON)
    scale = file.tensor("activation_global_scale", (count,))
    if bool((scale <= 0).any()):
        raise CrosscoderError(
            f"{file.path}: tensor 'activation_global_scale' is {scale.tolist()}, expected numbers above 0. "
            "The statistics of the activations were wrong; train it again."
        )
    return _Scaling(mean, file.raw("activation_global_scale", (count,)).double(), None)


def _partition(file: TensorFile, settings: dict[str, Any], count: int, features: int) -> Partition:
    """The partition from the weights file or, for files that hold only tensors, from the settings."""
    stored = file.entries.get("_partition_config", _trainer_settings(settings))
    keys = ("model_a_exclusive_pct", "model_b_exclusive_pct")
    if not isinstance(stored, dict) or not any(key in stored for key in keys):
        return Partition(0, 0, features)
    try:
        first, second = (int(features * float(stored[key])) for key in keys)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CrosscoderError(
            f"{file.path}: the partition {reprlib.repr(stored)} cannot be read ({error!r}). Copy it again."
        ) from None
    if count != 2 or min(first, second) < 0 or first + second > features:
        raise CrosscoderError(
            f"{file.path}: a partition of {first} and {second} exclusive features does not fit {count} sources and "
            f"{features} features. The settings are of another checkpoint."
        )
    return Partition(first, second, features - first - second)


def _exclusive_shares(partition: Partition, features: int) -> dict[str, float]:
    """The partition as shares, which the tool multiplies by the size and rounds down; empty if all are shared."""
    if not partition.first and not partition.second:
        return {}
    sizes = {"model_a_exclusive_pct": partition.first, "model_b_exclusive_pct": partition.second}
    exact = {key: size / features for key, size in sizes.items()}
    return {
        key: exact[key] if int(features * exact[key]) == size else (size + 0.5) / features
        for key, size in sizes.items()
    }


def _divisor(scale: float) -> float:
    """The tool's divisor of the output; equal to the scale unless that is below SMALL_SCALE."""
    return scale + EPSILON if scale < SMALL_SCALE else scale


def _inverse_divisor(scale: float) -> float:
    """The inverse of `_divisor`."""
    return scale - EPSILON if scale < SMALL_SCALE else scale


def _normaliser_entries(crosscoder: Crosscoder, width: int) -> dict[str, Tensor]:
    """Statistics with which the tool normalises as the crosscoder does."""
    normalisers = [crosscoder.normaliser[source] for source in crosscoder.sources]
    scale = torch.tensor([_inverse_divisor(normaliser.scale) for normaliser in normalisers], dtype=torch.float64)
    mean = torch.stack([normaliser.mean for normaliser in normalisers]).float()
    deviation = (1 / (scale * width**0.5)).float()[:, None].expand(-1, width).contiguous()
    if bool((scale == 1).all()) and not bool(mean.any()):
        mean, deviation = torch.full_like(mean, torch.nan), torch.full_like(mean, torch.nan)
    return {
        "target_rms": torch.tensor(1.0),
        "activation_mean": mean,
        "activation_std": deviation,
        "activation_global_scale": scale,
    }
