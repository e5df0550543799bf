"""Layout: how other tools arrange a crosscoder's weights, and how they are cut into groups and stacked again.

They hold one encoder and one decoder per source over all features, mostly stacked, so all widths are equal. What a
feature may not read or write is stored as zeros there; here it is not stored. Axes: S sources, F features, W width.
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

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Weights:
    """A crosscoder's weights over all features, one of each per source."""

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
    """Features of two sources in the order of the DFC tools: first source's own, second source's own, shared.

    With nothing exclusive, it fits any number of sources.
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
    """Names of a checkpoint's sources: those given, else those Crossdiff wrote, else numbered ones.

    Raises CrosscoderError for a wrong number of names, one twice, or one that pages and files cannot use.
    """
    ours = settings.get("crossdiff")
    written = ours.get("sources", []) if isinstance(ours, dict) else []
    names = tuple(given) or tuple(map(str, written)) or tuple(f"source-{place}" for place in range(count))
    if len(names) != count or len(set(names)) < count:
        raise CrosscoderError(
            f"{origin} has {count} sources, not {', '.join(names)}. Name each of them once, in order."
        )
    for name in names:
        need_file_name(name)
        if name == "shared":
            raise CrosscoderError(
                f"{origin}: 'shared' is what the group of all sources is called. Name the source otherwise."
            )
    return names


def need_file_name(source: str) -> None:
    """Refuse a source's name that cannot stand in a file's name or a URL. Raises CrosscoderError."""
    if not NAME.fullmatch(source):
        raise CrosscoderError(
            f"{source!r} cannot name a source. Use small letters and digits, and after the first also dots, dashes and "
            "underscores."
        )


def assembled(
    weights: Weights,
    groups: Sequence[Group],
    normaliser: dict[str, Normaliser],
    *,
    threshold: float | Tensor,
    rank_by: str,
    origin: Path,
) -> Crosscoder:
    """A crosscoder from another tool's weights, without the blocks that its groups may not use.

    `threshold` is one score for all features or, of a single group, one for each [F].

    Raises CrosscoderError when such a block is not exactly zero.
    """
    sources = tuple(normaliser)
    own: dict[str, Tensor] = {}
    for group in groups:
        part = slice(group.first, group.stop)
        own[f"encoder_bias.{group.name}"] = weights.encoder_bias[part].contiguous()
        for kind, members, stack in (
            ("encoder", group.reads, weights.encoder),
            ("decoder", group.writes, weights.decoder),
        ):
            for source, block in zip(sources, stack, strict=True):
                if source in members:
                    own[f"{kind}.{source}.{group.name}"] = block[part].contiguous()
                else:
                    _refuse_unless_zero(block[part], f"{kind} of {source!r} for the features of {group.name!r}", origin)
    own |= {f"decoder_bias.{s}": bias.contiguous() for s, bias in zip(sources, weights.decoder_bias, strict=True)}
    widths = {source: block.shape[1] for source, block in zip(sources, weights.encoder, strict=True)}
    thresholds = {group.name: torch.as_tensor(threshold, dtype=torch.float32) for group in groups}
    return Crosscoder(widths, tuple(groups), own, normaliser, thresholds, rank_by)


def disassembled(crosscoder: Crosscoder) -> Weights:
    """A crosscoder's weights over all features, with zeros for what a feature or a source does not have."""
    biases = {source: torch.zeros(width) for source, width in crosscoder.widths.items()}
    biases |= {source: crosscoder.weights[f"decoder_bias.{source}"].detach().float() for source in crosscoder.targets}
    return Weights(
        [crosscoder.encoder(source) for source in crosscoder.sources],
        [crosscoder.decoder(source) for source in crosscoder.sources],
        torch.cat([crosscoder.weights[f"encoder_bias.{group.name}"].detach().float() for group in crosscoder.groups]),
        [biases[source] for source in crosscoder.sources],
    )


def refuse_differences(crosscoder: Crosscoder, tool: str) -> None:
    """Refuse a crosscoder of differences between sources. Raises CrosscoderError."""
    for name, (one, other) in crosscoder.differences.items():
        raise CrosscoderError(
            f"{tool} cannot say that {name!r} is {one!r} minus {other!r}. Keep Crossdiff's own files, which do."
        )


def common_width(crosscoder: Crosscoder, tool: str) -> int:
    """The width all sources have. Raises CrosscoderError when they differ."""
    if len(set(crosscoder.widths.values())) > 1:
        found = ", ".join(f"{source} {width}" for source, width in crosscoder.widths.items())
        raise CrosscoderError(
            f"{tool} has one width for all sources, and this crosscoder has {found}. "
            "Export it as saelens (one file per source) or sparsify (sources side by side)."
        )
    return next(iter(crosscoder.widths.values()))


def need_one_group(crosscoder: Crosscoder, tool: str) -> None:
    """Refuse unless every feature reads and writes every source, in one group. Raises CrosscoderError."""
    partition, _ = partitioned(crosscoder, tool)
    if partition.first or partition.second:
        raise CrosscoderError(
            f"{tool} has no exclusive features, and this crosscoder has {partition.first} and {partition.second}. "
            "Export it as dictionary-learning or antebe, which keep them apart."
        )


def partitioned(crosscoder: Crosscoder, tool: str) -> tuple[Partition, Tensor]:
    """The partition of a crosscoder with at most one shared group and one exclusive to each of two sources.

    Gives the feature of every place in the partition's order too, int64 [F]. Raises CrosscoderError for other groups.
    """
    everyone = set(crosscoder.sources)
    allowed: list[set[str]] = [everyone] if len(everyone) != 2 else [{s} for s in crosscoder.sources] + [everyone]
    sizes, order = [0] * len(allowed), [torch.zeros(0, dtype=torch.int64)] * len(allowed)
    for group in crosscoder.groups:
        fits = set(group.reads) == set(group.writes) and set(group.reads) in allowed
        place = allowed.index(set(group.reads)) if fits else -1
        if place < 0 or sizes[place]:
            raise CrosscoderError(
                f"{tool} has no place for group {group.name!r} (reads {', '.join(group.reads)}, writes "
                f"{', '.join(group.writes)}): only one shared group and, with two sources, one exclusive to each. "
                "Export it as saelens or sparsify, or keep Crossdiff's own files."
            )
        sizes[place], order[place] = group.features, torch.arange(group.first, group.stop)
    return Partition(*([0, 0][: 3 - len(sizes)] + sizes)), torch.cat(order)


def _refuse_unless_zero(block: Tensor, what: str, origin: Path) -> None:
    largest = float(block.abs().max()) if block.numel() else 0.0
    if largest:
        raise CrosscoderError(
            f"{origin}: the {what} must be exactly zero, and reaches {largest:.3g}. Its tools disagree on whether such "
            "weights count, so its meaning is open. Set them to zero and save it again."
        )


def kept_per_row(crosscoder: Crosscoder) -> int | None:
    """How many features are kept in every row (TopK), None for other kinds.

    Raises CrosscoderError when every group keeps its own number.
    """
    if len(crosscoder.row_k) > 1:
        found = ", ".join(f"{group} {k}" for group, k in crosscoder.row_k.items())
        raise CrosscoderError(
            f"No other tool keeps a number of features per group and row ({found}). Keep our own files."
        )
    return next(iter(crosscoder.row_k.values()), None)
