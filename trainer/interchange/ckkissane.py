"""Checkpoints of ckkissane's L1 crosscoder and its forks, for two or more models.

`cc_weights.pt` with `cfg.json`, or `{n}.pt` with `{n}_cfg.json`. Activations are multiplied by a factor per source
before they are encoded. Some forks have a threshold, and some store the factors in the settings
(`estimated_act_norm_list`); otherwise the caller has to give them.
"""

import math
import reprlib
from collections.abc import Sequence
from pathlib import Path

import torch

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.normalisation import Normaliser
from trainer.errors import CrosscoderError
from trainer.interchange.folding import fires_when_positive, with_one_threshold, with_summed_inputs, without_mean
from trainer.interchange.layout import (
    Partition,
    Weights,
    assemble_crosscoder,
    common_width,
    k_per_row,
    refuse_differences,
    require_one_group,
    source_names,
    stack_weights,
)
from trainer.interchange.tensor_files import read_settings, read_tensors, write_tensors
from trainer.run.folder import write_json

TOOL = "ckkissane"
READ_LOSSES = "Factors that are not in the settings are taken as 1 unless given."
WRITE_LOSSES = (
    "Means are folded into the biases; scales are in cfg.json as estimated_act_norm_list. A threshold can be held "
    "only with rank_by sum_of_norms. k is written as 0 unless given."
)
FACTORS = "estimated_act_norm_list"


def find(path: Path) -> Path | None:
    """The newest weights file of this format at a path to a folder or file, or None."""
    if path.is_file():
        return path if path.name == "cc_weights.pt" or _settings_of(path).name.endswith("_cfg.json") else None
    if (path / "cc_weights.pt").is_file():
        return path / "cc_weights.pt"
    numbered = [file for file in path.glob("*.pt") if file.stem.isdecimal() and _settings_of(file).is_file()]
    return max(numbered, key=lambda file: int(file.stem), default=None)


def read(path: Path, *, sources: Sequence[str] = (), scales: Sequence[float] = ()) -> Crosscoder:
    """Read a checkpoint: its folder or its weights file.

    `scales` are the factors on the activations, one per source. Raises CrosscoderError for a damaged or unsafe
    file, or one that Crossdiff cannot hold.
    """
    file = read_tensors(find(path) or path)
    settings = read_settings(_settings_of(file.path))
    file.require_known(("W_enc", "W_dec", "b_enc", "b_dec", "k", "threshold"))
    count, width, features = file.raw("W_enc", ("sources", "width", "features")).shape
    for key, found in (("d_in", width), ("dict_size", features)):
        if settings.get(key, found) != found:
            raise CrosscoderError(
                f"{file.path}: tensor 'W_enc' has shape [{count}, {width}, {features}], but its settings say "
                f"{key} {reprlib.repr(settings[key])}. Weights and settings are of two checkpoints; copy them again."
            )
    names = source_names(sources, settings, count, file.path)
    factors = scales or settings.get(FACTORS) or [1.0] * count
    if not isinstance(factors, Sequence) or len(factors) != count or not all(map(_is_factor, factors)):
        raise CrosscoderError(
            f"{file.path} has {count} sources, and scales are {reprlib.repr(factors)}. Give one above 0 for each."
        )
    weights = Weights(
        [block.T.contiguous() for block in file.tensor("W_enc", (count, width, features))],
        list(file.tensor("W_dec", (features, count, width)).unbind(1)),
        file.tensor("b_enc", (features,)),
        list(file.tensor("b_dec", (count, width))),
    )
    return assemble_crosscoder(
        weights,
        Partition(0, 0, features).groups(names),
        {name: Normaliser(torch.zeros(width), factor) for name, factor in zip(names, factors, strict=True)},
        threshold=max(float(file.tensor("threshold", ())), 0.0) if "threshold" in file else 0.0,
        rank_by="sum_of_norms",
        origin=file.path,
    )


def write(crosscoder: Crosscoder, folder: Path, *, k: int = 0) -> None:
    """Write cc_weights.pt and cfg.json.

    Raises CrosscoderError when widths differ, features are exclusive, k features are kept per row, or thresholds apply
    to another score than the activation times the sum of decoder norms.
    """
    refuse_differences(crosscoder, TOOL)
    require_one_group(crosscoder, TOOL)
    width = common_width(crosscoder, TOOL)
    if k_per_row(crosscoder) is not None:
        raise CrosscoderError(f"{TOOL} keeps no fixed number of features per row. Export it as crosscode or sparsify.")
    if not fires_when_positive(crosscoder) and crosscoder.rank_by != "sum_of_norms":
        raise CrosscoderError(
            f"{TOOL} compares activation times the sum of decoder norms with its threshold, and this crosscoder ranks "
            f"by {crosscoder.rank_by}. Export it as dictionary-learning or crosscode, or train with sum_of_norms."
        )
    folded, threshold = with_one_threshold(without_mean(with_summed_inputs(crosscoder)), TOOL)
    if threshold > 0 and folded.rank_by != "sum_of_norms":
        raise CrosscoderError(
            f"{TOOL} has one threshold for all features. Export it as dictionary-learning or crosscode."
        )
    weights = stack_weights(folded)
    scales = [folded.normaliser[source].scale for source in folded.sources]
    entries = {
        "W_enc": torch.stack([block.T for block in weights.encoder]),
        "W_dec": torch.stack(weights.decoder, dim=1),
        "b_enc": weights.encoder_bias,
        "b_dec": torch.stack(weights.decoder_bias),
    }
    settings = {
        "dict_size": folded.features,
        "d_in": width,
        "n_models": len(folded.sources),
        "enc_dtype": "fp32",
        "seed": 0,
        "dec_init_norm": 0.1,
        "device": "cpu",
        FACTORS: scales,
        "crossdiff": {"sources": list(folded.sources)},
    }
    if threshold > 0:
        entries |= {"k": torch.tensor(k, dtype=torch.int32), "threshold": torch.tensor(threshold)}
        settings["batch_topk_init"] = k
    write_tensors(folder / "cc_weights.pt", entries)
    write_json(folder / "cfg.json", settings)


def _is_factor(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _settings_of(weights: Path) -> Path:
    """Path of the settings of a weights file."""
    for name in (f"{weights.stem}_cfg.json", "cfg.json", "cc_cfg.json"):
        if weights.with_name(name).is_file():
            return weights.with_name(name)
    return weights.with_name("cfg.json")
