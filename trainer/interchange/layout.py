"""Converts between other tools' weights over all features and Crossdiff's weights per group.

Other tools have one encoder and one decoder per source over all features, mostly stacked, so that all widths are equal.
Blocks that a feature may not read or write are zeros there and absent here. Axes: S sources, F features, W width.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.crosscoder.groups import Group
from trainer.crosscoder.normalisation import Normaliser
from trainer.errors import CrosscoderError

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Weights:
    """A crosscoder's weights over all features, per source."""

    encoder: list[Tensor]
    """[F, W] per source."""
    decoder: list[Tensor]
    """[F, W] per source."""
    encoder_bias: Tensor
    """[F]."""
    decoder_bias: list[Tensor]
    """[W] per source."""


@dataclass(frozen=True)
class Partition:
    """Numbers of features in the order of the DFC tools: exclusive to the first source, to the second, shared.

    Without exclusive features it fits any number of sources.
    """

    first: int
    second: int
    shared: int

    def groups(self, sources: Sequence[str]) -> tuple[Group, ...]:
        """The groups of this partition, in its order; empty ones are left out."""
        sizes = [(self.first, sources[:1]), (self.second, sources[1:2]), (self.shared, sources)]
        groups: list[Group] = []
        for size, members in sizes:
            if size:
                name = "shared" if members is sources else members[0]
                start = groups[-1].stop if groups else 0
                groups.append(Group(name, size, start, tuple(members), tuple(members)))
        return tuple(groups)


def source_names(given: Sequence[str], settings: dict[str, Any], count: int, origin: Path) -> tuple[str, ...]:
    """Names of a checkpoint's sources: those given, else those that Crossdiff wrote, else numbered ones.

    Raises CrosscoderError for a wrong number of names, a duplicate, or a name that URLs and files cannot hold.
    """
    ours = settings.get("crossdiff")
    written = ours.get("sources") if isinstance(ours, dict) else None
    names = (
        tuple(given)
        or (tuple(map(str, written)) if isinstance(written, list) else ())
        or tuple(f"source-{index}" for index in range(count))
    )
    if len(names) != count or len(set(names)) < count:
        raise CrosscoderError(
            f"{origin} has {count} sources, not {', '.join(names)[:200]}. Name each of them once, in order."
        )
    if not count:
        raise CrosscoderError(f"{origin} has no sources: its weights are empty. Copy the whole checkpoint again.")
    for name in names:
        require_file_name(name)
        if name == "shared":
            raise CrosscoderError(
                f"{origin}: 'shared' is what the group of all sources is called. Name the source otherwise."
            )
    return names


def require_file_name(source: str) -> None:
    """Raise CrosscoderError for a source's name that cannot be part of a file name or URL."""
    if not NAME_PATTERN.fullmatch(source):
        raise CrosscoderError(
            f"{source[:100]!r} cannot name a source. Use small letters and digits, and after the first also dots, "
            "dashes and underscores."
        )


def assemble_crosscoder(
    weights: Weights,
    groups: Sequence[Group],
    normaliser: dict[str, Normaliser],
    *,
    threshold: float | Tensor,
    rank_by: str,
    origin: Path,
) -> Crosscoder:
    """Make a crosscoder from weights over all features, without the blocks that its groups may not use.

    `threshold` is one score for all features or, for a single group, one per feature [F]. Raises CrosscoderError when a
    block to leave out is not exactly zero.
    """
    sources = tuple(normaliser)
    parts: dict[str, Tensor] = {}
    for group in groups:
        span = slice(group.first, group.stop)
        parts[f"encoder_bias.{group.name}"] = weights.encoder_bias[span].contiguous()
        for kind, members, stack in (
            ("encoder", group.reads, weights.encoder),
            ("decoder", group.writes, weights.decoder),
        ):
            for source, block in zip(sources, stack, strict=True):
                if source in members:
                    parts[f"{kind}.{source}.{group.name}"] = block[span].contiguous()
                else:
                    _refuse_unless_zero(block[span], f"{kind} of {source!r} for the features of {group.name!r}", origin)
    parts |= {f"decoder_bias.{s}": bias.contiguous() for s, bias in zip(sources, weights.decoder_bias, strict=True)}
    widths = {source: block.shape[1] for source, block in zip(sources, weights.encoder, strict=True)}
    thresholds = {group.name: torch.as_tensor(threshold, dtype=torch.float32) for group in groups}
    return Crosscoder(widths, tuple(groups), parts, normaliser, thresholds, rank_by)


def stack_weights(crosscoder: Crosscoder) -> Weights:
    """A crosscoder's weights over all features, with zeros for absent blocks."""
    biases = {source: torch.zeros(width) for source, width in crosscoder.widths.items()}
    biases |= {source: crosscoder.weights[f"decoder_bias.{source}"].detach().float() for source in crosscoder.targets}
    return Weights(
        [crosscoder.encoder(source) for source in crosscoder.sources],
        [crosscoder.decoder(source) for source in crosscoder.sources],
        torch.cat([crosscoder.weights[f"encoder_bias.{group.name}"].detach().float() for group in crosscoder.groups]),
        [biases[source] for source in crosscoder.sources],
    )


def refuse_differences(crosscoder: Crosscoder, tool: str) -> None:
    """Raise CrosscoderError for a crosscoder of differences between sources, or of what others do not tell of one."""
    for name, prediction in crosscoder.predictions.items():
        raise CrosscoderError(
            f"{tool} cannot store that {name!r} is reconstructed from {', '.join(prediction.given)} and the features "
            "together. Keep Crossdiff's own files, which do."
        )
    for name, (one, other) in crosscoder.differences.items():
        raise CrosscoderError(
            f"{tool} cannot store that {name!r} is {one!r} minus {other!r}. Keep Crossdiff's own files, which do."
        )


def common_width(crosscoder: Crosscoder, tool: str) -> int:
    """The width of all sources. Raises CrosscoderError when they differ."""
    if len(set(crosscoder.widths.values())) > 1:
        found = ", ".join(f"{source} {width}" for source, width in crosscoder.widths.items())
        raise CrosscoderError(
            f"{tool} has one width for all sources, and this crosscoder has {found}. "
            "Export it as saelens (one file per source) or sparsify (sources side by side)."
        )
    return next(iter(crosscoder.widths.values()))


def require_one_group(crosscoder: Crosscoder, tool: str) -> None:
    """Raise CrosscoderError unless there is one group that reads and writes every source."""
    partition, _ = dfc_partition(crosscoder, tool)
    if partition.first or partition.second:
        raise CrosscoderError(
            f"{tool} has no exclusive features, and this crosscoder has {partition.first} and {partition.second}. "
            "Export it as dictionary-learning or antebe, which keep them apart."
        )


def dfc_partition(crosscoder: Crosscoder, tool: str) -> tuple[Partition, Tensor]:
    """The partition of a crosscoder with at most one shared group and one exclusive to each of two sources.

    Also returns the crosscoder's features in the partition's order, int64 [F]. Raises CrosscoderError for other groups.
    """
    everyone = set(crosscoder.sources)
    allowed: list[set[str]] = [everyone] if len(everyone) != 2 else [{s} for s in crosscoder.sources] + [everyone]
    sizes, order = [0] * len(allowed), [torch.zeros(0, dtype=torch.int64)] * len(allowed)
    for group in crosscoder.groups:
        fits = set(group.reads) == set(group.writes) and set(group.reads) in allowed
        index = allowed.index(set(group.reads)) if fits else -1
        if index < 0 or sizes[index]:
            raise CrosscoderError(
                f"{tool} has no place for group {group.name!r} (reads {', '.join(group.reads)}, writes "
                f"{', '.join(group.writes)}): only one shared group and, with two sources, one exclusive to each. "
                "Export it as saelens or sparsify, or keep Crossdiff's own files."
            )
        sizes[index], order[index] = group.features, torch.arange(group.first, group.stop)
    return Partition(*([0, 0][: 3 - len(sizes)] + sizes)), torch.cat(order)


def _refuse_unless_zero(block: Tensor, what: str, origin: Path) -> None:
    largest = float(block.abs().max()) if block.numel() else 0.0
    if largest:
        raise CrosscoderError(
            f"{origin}: the {what} must be exactly zero, and reaches {largest:.3g}. Its tools disagree on whether such "
            "weights count, so its meaning is open. Set them to zero and save it again."
        )


def k_per_row(crosscoder: Crosscoder) -> int | None:
    """Number of features kept per row (TopK), None for other kinds.

    Raises CrosscoderError when groups have separate numbers.
    """
    if len(crosscoder.row_k) > 1:
        found = ", ".join(f"{group} {k}" for group, k in crosscoder.row_k.items())
        raise CrosscoderError(
            f"No other tool keeps a number of features per group and row ({found}). Keep Crossdiff's own files."
        )
    return next(iter(crosscoder.row_k.values()), None)
