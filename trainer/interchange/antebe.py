"""antebe: the two-model DFC of model_diffing_crosscoders, which keeps the k strongest features of every row.

`model.pt` with `config.json`. Features stand in the order first source's own, second source's own, shared. Its
training divides activations by their deviation, neuron by neuron and corpus by corpus, and saves neither mean nor
deviation: rows for such a checkpoint have to be prepared by whoever knows them.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.normalisation import Normaliser
from trainer.errors import CrosscoderError
from trainer.interchange.folding import ranked_by_activation
from trainer.interchange.layout import (
    Partition,
    Weights,
    assembled,
    common_width,
    disassembled,
    partitioned,
    refuse_differences,
    source_names,
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
    """The weights of this format in a folder, or the file itself; None when there are none."""
    file = path if path.is_file() else path / "model.pt"
    return file if file.is_file() and file.name == "model.pt" and file.with_name("config.json").is_file() else None


def read(path: Path, *, sources: Sequence[str] = (), threshold: float | None = None) -> Crosscoder:
    """Read a checkpoint: its folder or its weights file.

    With `threshold`, features are active above it instead of being the k strongest of their row. Raises CrosscoderError
    for a damaged or unsafe file, forbidden weights that are not zero, or exclusive features without a threshold.
    """
    file = read_tensors(find(path) or path)
    settings = read_settings(file.path.with_name("config.json"))
    file.only(("W_enc", "W_dec", "b_enc", "b_dec", "enc_mask", "dec_mask"))
    _, width, features = file.raw("W_enc", (SOURCES, "width", "features")).shape
    names = source_names(sources, settings, SOURCES, file.path)
    partition = _partition(file, settings, features)
    own = Weights(
        [block.T.contiguous() for block in file.tensor("W_enc", (SOURCES, width, features))],
        list(file.tensor("W_dec", (features, SOURCES, width)).unbind(1)),
        file.tensor("b_enc", (features,)),
        list(file.tensor("b_dec", (SOURCES, width))),
    )
    crosscoder = assembled(
        own,
        partition.groups(names),
        {name: Normaliser(torch.zeros(width), 1.0) for name in names},
        threshold=threshold or 0.0,
        rank_by="activation",
        origin=file.path,
    )
    return crosscoder if threshold is not None else _keeping(crosscoder, settings, file.path)


def write(crosscoder: Crosscoder, folder: Path, *, k: int | None = None) -> None:
    """Write model.pt and config.json.

    Features above a threshold become the `k` strongest of each row: the caller has to say so by giving k. Raises
    CrosscoderError without k, when widths differ, or when there are not two sources with a shared group and one
    exclusive to each.
    """
    refuse_differences(crosscoder, TOOL)
    partition, order = partitioned(crosscoder, TOOL)
    width = common_width(crosscoder, TOOL)
    if len(crosscoder.sources) != SOURCES:
        raise CrosscoderError(
            f"{TOOL} has two sources, not {len(crosscoder.sources)}. Export it as sparsify or crosscode."
        )
    plain, kept = ranked_by_activation(crosscoder, k, TOOL)
    own = disassembled(plain)
    mask = torch.ones(SOURCES, crosscoder.features)
    mask[1, : partition.first] = 0
    mask[0, partition.first : partition.first + partition.second] = 0
    entries = {
        "W_enc": torch.stack([block[order].T for block in own.encoder]),
        "W_dec": torch.stack([block[order] for block in own.decoder], dim=1),
        "b_enc": own.encoder_bias[order],
        "b_dec": torch.stack(own.decoder_bias),
        "enc_mask": mask,
        "dec_mask": mask.T.contiguous(),
    }
    write_tensors(folder / "model.pt", entries)
    settings = {
        "activation_dim": width,
        "dict_size": crosscoder.features,
        "k": kept,
        "n_a": partition.first,
        "n_b": partition.second,
        "crossdiff": {"sources": list(crosscoder.sources)},
    }
    write_json(folder / "config.json", settings)


def _keeping(crosscoder: Crosscoder, settings: dict[str, object], origin: Path) -> Crosscoder:
    """The crosscoder that keeps the k strongest features of each row."""
    k = settings.get("k")
    if not isinstance(k, int) or k < 1:
        raise CrosscoderError(f"{origin}: config.json beside it does not say k. Copy it there, or give a threshold.")
    if k >= crosscoder.features:
        return crosscoder
    if len(crosscoder.groups) > 1:
        raise CrosscoderError(
            f"{origin} keeps the {k} strongest of all features in each row, and Crossdiff only of each group. Give a "
            "threshold on the activation instead; 0 keeps every positive one."
        )
    return replace(crosscoder, row_k={crosscoder.groups[0].name: k})


def _partition(file: TensorFile, settings: dict[str, object], features: int) -> Partition:
    """The partition that the settings give; the masks in the weights file have to say the same."""
    sizes = [settings.get(key, 0) for key in ("n_a", "n_b")]
    if not all(isinstance(size, int) for size in sizes):
        raise CrosscoderError(f"{file.path}: config.json gives n_a and n_b as {sizes}. Copy it again.")
    first, second = (int(str(size)) for size in sizes)
    for name, axes, source_first in (("enc_mask", (SOURCES, features), True), ("dec_mask", (features, SOURCES), False)):
        if name in file:
            mask = file.tensor(name, axes)
            _check_mask(mask if source_first else mask.T, first, second, f"{file.path}: tensor {name!r}")
    if min(first, second) < 0 or first + second > features:
        raise CrosscoderError(
            f"{file.path}: n_a {first} and n_b {second} do not fit {features} features. The settings are of another "
            "checkpoint; copy them again."
        )
    return Partition(first, second, features - first - second)


def _check_mask(mask: Tensor, first: int, second: int, what: str) -> None:
    wanted = torch.ones_like(mask)
    wanted[1, :first] = 0
    wanted[0, first : first + second] = 0
    if not torch.equal(mask, wanted):
        raise CrosscoderError(
            f"{what} does not leave {first} features to the first source and {second} to the second, as config.json "
            "says. Weights and settings are of two checkpoints; copy them again."
        )
