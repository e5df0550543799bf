"""Checkpoints of antebe's model_diffing_crosscoders: a DFC over two models with TopK per row.

`model.pt` with `config.json`. Features are ordered: exclusive to the first source, exclusive to the second, shared. Its
training standardises activations per neuron and per corpus and saves neither means nor deviations, so rows for such a
checkpoint must be normalised beforehand by somebody who has these statistics.
"""

import reprlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.normalisation import Normaliser
from trainer.errors import CrosscoderError
from trainer.interchange.folding import for_top_k
from trainer.interchange.layout import (
    Partition,
    Weights,
    assemble_crosscoder,
    common_width,
    dfc_partition,
    refuse_differences,
    source_names,
    stack_weights,
)
from trainer.interchange.tensor_files import TensorFile, read_settings, read_tensors, write_tensors
from trainer.run.folder import write_json

TOOL = "antebe"
READ_LOSSES = "The normalisation of its training is not in the file. Forbidden weights must be exactly zero."
WRITE_LOSSES = (
    "Normalisation is folded into the weights. k features are kept per row in place of a threshold. "
    "Features of a DFC are renumbered: exclusive ones first."
)
SOURCES = 2


def find(path: Path) -> Path | None:
    """The weights file of this format at a path to a folder or file, or None."""
    file = path if path.is_file() else path / "model.pt"
    return file if file.is_file() and file.name == "model.pt" and file.with_name("config.json").is_file() else None


def read(path: Path, *, sources: Sequence[str] = (), threshold: float | None = None) -> Crosscoder:
    """Read a checkpoint: its folder or its weights file.

    With `threshold`, features are active above it instead of the k strongest per row. Raises CrosscoderError
    for a damaged or unsafe file, forbidden weights that are not zero, or exclusive features without a threshold.
    """
    file = read_tensors(find(path) or path)
    settings = read_settings(file.path.with_name("config.json"))
    file.require_known(("W_enc", "W_dec", "b_enc", "b_dec", "enc_mask", "dec_mask"))
    _, width, features = file.raw("W_enc", (SOURCES, "width", "features")).shape
    names = source_names(sources, settings, SOURCES, file.path)
    partition = _partition(file, settings, features)
    weights = Weights(
        [block.T.contiguous() for block in file.tensor("W_enc", (SOURCES, width, features))],
        list(file.tensor("W_dec", (features, SOURCES, width)).unbind(1)),
        file.tensor("b_enc", (features,)),
        list(file.tensor("b_dec", (SOURCES, width))),
    )
    crosscoder = assemble_crosscoder(
        weights,
        partition.groups(names),
        {name: Normaliser(torch.zeros(width), 1.0) for name in names},
        threshold=threshold or 0.0,
        rank_by="activation",
        origin=file.path,
    )
    return crosscoder if threshold is not None else _with_row_k(crosscoder, settings, file.path)


def write(crosscoder: Crosscoder, folder: Path, *, k: int | None = None) -> None:
    """Write model.pt and config.json.

    A crosscoder with thresholds is written as TopK with the `k` given. Raises
    CrosscoderError without k, when widths differ, or when there are not two sources with a shared group and one
    exclusive to each.
    """
    refuse_differences(crosscoder, TOOL)
    partition, order = dfc_partition(crosscoder, TOOL)
    width = common_width(crosscoder, TOOL)
    if len(crosscoder.sources) != SOURCES:
        raise CrosscoderError(
            f"{TOOL} has two sources, not {len(crosscoder.sources)}. Export it as sparsify or crosscode."
        )
    folded, row_k = for_top_k(crosscoder, k, TOOL)
    weights = stack_weights(folded)
    mask = torch.ones(SOURCES, crosscoder.features)
    mask[1, : partition.first] = 0
    mask[0, partition.first : partition.first + partition.second] = 0
    entries = {
        "W_enc": torch.stack([block[order].T for block in weights.encoder]),
        "W_dec": torch.stack([block[order] for block in weights.decoder], dim=1),
        "b_enc": weights.encoder_bias[order],
        "b_dec": torch.stack(weights.decoder_bias),
        "enc_mask": mask,
        "dec_mask": mask.T.contiguous(),
    }
    write_tensors(folder / "model.pt", entries)
    settings = {
        "activation_dim": width,
        "dict_size": crosscoder.features,
        "k": row_k,
        "n_a": partition.first,
        "n_b": partition.second,
        "crossdiff": {"sources": list(crosscoder.sources)},
    }
    write_json(folder / "config.json", settings)


def _with_row_k(crosscoder: Crosscoder, settings: dict[str, object], origin: Path) -> Crosscoder:
    """The crosscoder with TopK per row, with k from the settings."""
    k = settings.get("k")
    if not isinstance(k, int) or k < 1:
        raise CrosscoderError(f"{origin}: the config.json beside it has no k. Copy it there, or give a threshold.")
    if k >= crosscoder.features:
        return crosscoder
    if len(crosscoder.groups) > 1:
        raise CrosscoderError(
            f"{origin} keeps the {k} strongest of all features in each row, and Crossdiff only of each group. Give a "
            "threshold on the activation instead; 0 keeps every positive one."
        )
    return replace(crosscoder, row_k={crosscoder.groups[0].name: k})


def _partition(file: TensorFile, settings: dict[str, object], features: int) -> Partition:
    """The partition in the settings. Raises CrosscoderError when the masks in the weights file contradict it."""
    sizes = [settings.get(key, 0) for key in ("n_a", "n_b")]
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in sizes):
        raise CrosscoderError(f"{file.path}: config.json gives n_a and n_b as {reprlib.repr(sizes)}. Copy it again.")
    first, second = (int(str(size)) for size in sizes)
    if min(first, second) < 0 or first + second > features:
        raise CrosscoderError(
            f"{file.path}: n_a {first} and n_b {second} do not fit {features} features. The settings are of another "
            "checkpoint; copy them again."
        )
    for name, axes, source_first in (("enc_mask", (SOURCES, features), True), ("dec_mask", (features, SOURCES), False)):
        if name in file:
            mask = file.tensor(name, axes)
            _check_mask(mask if source_first else mask.T, first, second, f"{file.path}: tensor {name!r}")
    return Partition(first, second, features - first - second)


def _check_mask(mask: Tensor, first: int, second: int, what: str) -> None:
    expected = torch.ones_like(mask)
    expected[1, :first] = 0
    expected[0, first : first + second] = 0
    if not torch.equal(mask, expected):
        raise CrosscoderError(
            f"{what} does not leave {first} features to the first source and {second} to the second, as config.json "
            "says. Weights and settings are of two checkpoints; copy them again."
        )
