"""dictionary_learning: its fork's CrossCoder and BatchTopKCrossCoder, and the partition of the DFC fork.

`model_final.pt`, `checkpoint_{step}.pt` or `model.safetensors` with `config.json`. A feature is active when its
activation times the code normalisation is above the threshold; weights stand in normalised space, as ours do.
"""

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
    stretched,
    summed,
    with_one_threshold,
    with_scores_as_activations,
)
from trainer.interchange.layout import (
    Partition,
    Weights,
    assembled,
    common_width,
    disassembled,
    kept_per_row,
    partitioned,
    refuse_differences,
    source_names,
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
"""`code_normalization_id` as our `rank_by`."""
NAMES = {"CROSSCODER": 1, "SAE": 2, "MIXED": 3, "NONE": 4, "DECOUPLED": 5}
MIXED, DECOUPLED = 3, 5
EPSILON = 1e-8
"""What the tool adds to a scale before it divides by it."""
MINUTE = 1e-2
"""Below this scale, the epsilon is seen in fp32."""
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
    """What the tool does to activations: (x - mean) * scale in, / (scale + epsilon) + mean out."""

    mean: Tensor
    """[S, W]."""
    scale: Tensor
    """[S] fp64."""
    neuron: Tensor | None
    """Deviation of every neuron [S, W] that divides instead of a scale; None but in old files."""


def find(path: Path) -> Path | None:
    """The newest weights of this format in a folder, or the file itself; None when there are none."""
    if path.is_file():
        mine = path.name in ("model.safetensors", "model_final.pt") or path.match("checkpoint_*.pt")
        return path if mine else None
    for name in ("model_final.pt", "model.safetensors"):
        if (path / name).is_file():
            return path / name
    steps = [file for file in path.glob("checkpoint_*.pt") if file.stem.rpartition("_")[2].isdigit()]
    return max(steps, key=lambda file: int(file.stem.rpartition("_")[2]), default=None)


def read(path: Path, *, sources: Sequence[str] = (), code_normalization: str = "") -> Crosscoder:
    """Read a checkpoint: its folder, or its weights file with config.json beside it.

    `code_normalization` (CROSSCODER, SAE, MIXED or NONE) is for old files that do not say it; CROSSCODER is assumed.
    Raises CrosscoderError for a damaged or unsafe file, or one that Crossdiff cannot hold.
    """
    file = read_tensors(find(path) or path)
    settings = read_settings(file.path.with_name("config.json"))
    file.only(ENTRIES)
    count, width, features = file.raw("encoder.weight", ("sources", "width", "features")).shape
    names = source_names(sources, settings, count, file.path)
    scaling = _scaling(file, settings, count, width)
    mean = dict(zip(names, scaling.mean, strict=True))
    own = _weights(file, count, width, features)
    for place, scale in enumerate(scaling.scale.tolist()):
        own.encoder[place] *= scale / _divisor(scale)
    crosscoder = assembled(
        own,
        _partition(file, settings, count, features).groups(names),
        {name: Normaliser(mean[name], _divisor(float(s))) for name, s in zip(names, scaling.scale, strict=True)},
        threshold=_threshold(file),
        rank_by="sum_of_norms",
        origin=file.path,
    )
    crosscoder = _ranked(crosscoder, _normalisation_id(file, code_normalization), settings, file.path)
    if scaling.neuron is None:
        return crosscoder
    plain = crosscoder if fires_when_positive(crosscoder) else with_scores_as_activations(crosscoder)
    return stretched(plain, {name: 1 / std for name, std in zip(names, scaling.neuron, strict=True)})


def write(crosscoder: Crosscoder, folder: Path, *, k: int = 0) -> None:
    """Write model_final.pt and config.json; load them with the class that config.json names, `from_pretrained`.

    Raises CrosscoderError when widths differ, groups are others than one shared and one exclusive to each of two
    sources, or k features are kept per row.
    """
    refuse_differences(crosscoder, TOOL)
    partition, order = partitioned(crosscoder, TOOL)
    width = common_width(crosscoder, TOOL)
    if kept_per_row(crosscoder) is not None:
        raise CrosscoderError(f"{TOOL} keeps no fixed number of features per row. Export it as antebe or sparsify.")
    plain, threshold = with_one_threshold(summed(crosscoder), TOOL)
    if plain.rank_by not in RANKINGS.values():
        plain = with_scores_as_activations(plain)
    own = disassembled(plain)
    ranking = next(number for number, rank_by in RANKINGS.items() if rank_by == plain.rank_by)
    entries: dict[str, Any] = {
        "encoder.weight": torch.empty(len(own.encoder), width, crosscoder.features),
        "encoder.bias": own.encoder_bias[order],
        "decoder.weight": torch.stack([block[order] for block in own.decoder]),
        "decoder.bias": torch.stack(own.decoder_bias),
        "code_normalization_id": torch.tensor(ranking),
        **_normaliser_entries(plain, width),
    }
    for place, source in enumerate(plain.sources):
        scale = plain.normaliser[source].scale
        entries["encoder.weight"][place] = own.encoder[place][order].T * (scale / _written(scale))
    if threshold > 0:
        entries |= {"k": torch.tensor(k, dtype=torch.int32), "threshold": torch.tensor(threshold)}
    exclusive = _shares(partition, crosscoder.features)
    if exclusive:
        entries["_partition_config"] = {"dict_size": crosscoder.features, **exclusive}
    write_tensors(folder / "model_final.pt", entries)
    family = ("DedicatedFeature" if exclusive else "") + ("BatchTopK" if threshold > 0 else "") + "CrossCoder"
    described = {
        "dict_class": family,
        "activation_dim": width,
        "dict_size": crosscoder.features,
        "num_layers": len(crosscoder.sources),
        "code_normalization": next(name for name, number in NAMES.items() if number == ranking),
        "target_rms": 1.0,
        **exclusive,
    }
    write_json(folder / "config.json", {"trainer": described, "crossdiff": {"sources": list(crosscoder.sources)}})


def _weights(file: TensorFile, count: int, width: int, features: int) -> Weights:
    encoder = file.tensor("encoder.weight", (count, width, features))
    return Weights(
        [block.T.contiguous() for block in encoder],
        list(file.tensor("decoder.weight", (count, features, width))),
        file.tensor("encoder.bias", (features,)),
        list(file.tensor("decoder.bias", (count, width))),
    )


def _threshold(file: TensorFile) -> float:
    """The threshold; one that was never set (-1) lets every positive activation through, as 0 does."""
    if "threshold" not in file:
        return 0.0
    if file.entries["threshold"].ndim:
        raise CrosscoderError(
            f"{file.path} has a code for each source (DECOUPLED), and a feature here has one for all of them. "
            "Train with another code_normalization to compare sources."
        )
    return max(float(file.tensor("threshold", ())), 0.0)


def _normalisation_id(file: TensorFile, given: str) -> int:
    if "code_normalization_id" in file:
        return int(file.raw("code_normalization_id", ()))
    if given and given.upper() not in NAMES:
        raise CrosscoderError(f"No code normalization is named {given!r}. Known are {', '.join(NAMES)}.")
    return NAMES[given.upper() or "CROSSCODER"]


def _ranked(crosscoder: Crosscoder, number: int, settings: dict[str, Any], origin: Path) -> Crosscoder:
    """The crosscoder with the checkpoint's own ranking."""
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
    """What MIXED multiplies activations with [F]: a weighted sum of two norms; the weights stand in the settings."""
    total = torch.zeros(crosscoder.features)
    for rank_by, key, default in (
        ("root_sum_of_squares", "code_normalization_alpha_sae", 1.0),
        ("sum_of_norms", "code_normalization_alpha_cc", 0.1),
    ):
        share = _of_trainer(settings).get(key, default)
        if not isinstance(share, int | float):
            raise CrosscoderError(f"{origin}: config.json beside it gives {key} as {share!r}. Copy it again.")
        total += share * scores_per_activation(replace(crosscoder, rank_by=rank_by))
    return total


def _of_trainer(settings: dict[str, Any]) -> dict[str, Any]:
    """What the settings say of the crosscoder: under `trainer` after training, at the top on the hub."""
    trainer = settings.get("trainer", settings)
    return trainer if isinstance(trainer, dict) else {}


def _scaling(file: TensorFile, settings: dict[str, Any], count: int, width: int) -> _Scaling:
    """The normalisation that the checkpoint asks for; none when its statistics are absent or NaN."""
    mean, ones = torch.zeros(count, width), torch.ones(count, dtype=torch.float64)
    if "activation_mean" not in file or "activation_std" not in file:
        return _Scaling(mean, ones, None)
    mean = file.raw("activation_mean", (count, width)).float()
    deviation = file.raw("activation_std", (count, width)).float()
    if bool(mean.isnan().any()) or bool(deviation.isnan().any()):
        return _Scaling(torch.zeros(count, width), ones, None)
    if _of_trainer(settings).get("keep_relative_variance") is False:
        return _Scaling(mean, ones, deviation + EPSILON)
    scale = file.tensor("activation_global_scale", (count,))
    if bool((scale <= 0).any()):
        raise CrosscoderError(
            f"{file.path}: tensor 'activation_global_scale' is {scale.tolist()}, expected numbers above 0. "
            "The statistics of the activations were wrong; train it again."
        )
    return _Scaling(mean, file.raw("activation_global_scale", (count,)).double(), None)


def _partition(file: TensorFile, settings: dict[str, Any], count: int, features: int) -> Partition:
    """The partition in the weights file or, in files that can hold only tensors, in the settings."""
    stored = file.entries.get("_partition_config", _of_trainer(settings))
    keys = ("model_a_exclusive_pct", "model_b_exclusive_pct")
    if not isinstance(stored, dict) or not any(key in stored for key in keys):
        return Partition(0, 0, features)
    try:
        first, second = (int(features * float(stored[key])) for key in keys)
    except (KeyError, TypeError, ValueError) as error:
        raise CrosscoderError(
            f"{file.path}: the partition {stored} cannot be read ({error!r}). Copy it again."
        ) from None
    if count != 2 or min(first, second) < 0 or first + second > features:
        raise CrosscoderError(
            f"{file.path}: a partition of {first} and {second} exclusive features does not fit {count} sources and "
            f"{features} features. The settings are of another checkpoint."
        )
    return Partition(first, second, features - first - second)


def _shares(partition: Partition, features: int) -> dict[str, float]:
    """The partition as the tool's shares, which it multiplies with the size and rounds down; empty for no partition."""
    if not partition.first and not partition.second:
        return {}
    sizes = {"model_a_exclusive_pct": partition.first, "model_b_exclusive_pct": partition.second}
    exact = {key: size / features for key, size in sizes.items()}
    return {
        key: exact[key] if int(features * exact[key]) == size else (size + 0.5) / features
        for key, size in sizes.items()
    }


def _divisor(scale: float) -> float:
    """What the tool divides by on the way out; the same as the scale unless that is minute."""
    return scale + EPSILON if scale < MINUTE else scale


def _written(scale: float) -> float:
    """The inverse of `_divisor`."""
    return scale - EPSILON if scale < MINUTE else scale


def _normaliser_entries(crosscoder: Crosscoder, width: int) -> dict[str, Tensor]:
    """Statistics that make the tool normalise as the crosscoder does."""
    normalisers = [crosscoder.normaliser[source] for source in crosscoder.sources]
    scale = torch.tensor([_written(normaliser.scale) for normaliser in normalisers], dtype=torch.float64)
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
