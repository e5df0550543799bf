"""A sparse dictionary over several sources: encoding, decoding and its files.

Each group of features reads some sources and writes some (see `trainer.crosscoder.groups`). Axes: R rows, F features of
a group, W width of a source. Encoder and decoder weights are [F, W] in memory, because sparse products address them by
feature.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer.crosscoder.files import (
    FORMAT,
    VERSION,
    from_file_layout,
    pop_predictions,
    pop_recurrence,
    prediction_tensors,
    read_files,
    recurrence_tensors,
    to_file_layout,
)
from trainer.crosscoder.groups import Group
from trainer.crosscoder.normalisation import Normaliser
from trainer.crosscoder.prediction import Prediction
from trainer.crosscoder.selection import ranking_norm, row_topk
from trainer.device import to_device
from trainer.errors import CrosscoderError
from trainer.kernels import int8_search
from trainer.kernels.int8_search import Int8Search
from trainer.kernels.sparse import SparsePattern, dense_above, sum_by_row
from trainer.run.folder import atomic_write, write_json

Rows = dict[str, Tensor]


class Codes(NamedTuple):
    """Sparse feature activations of some rows, sorted by row."""

    row: Tensor
    """Row of each firing int64 [N], not decreasing."""
    feature: Tensor
    """Feature of each firing int64 [N], as an index into the whole dictionary."""
    value: Tensor
    """Activation of each firing fp32 [N], not multiplied with the decoder norm."""
    rows: int
    """Number of rows, those without firings included."""


@dataclass
class Crosscoder:
    """Weights, groups, normalisers and thresholds; independent of the training."""

    widths: dict[str, int]
    """Width of each source by name, in order."""
    groups: tuple[Group, ...]
    weights: dict[str, Tensor]
    """`encoder.<source>.<group>` and `decoder.<source>.<group>` [F, W], `encoder_bias.<group>` [F],
    `decoder_bias.<source>` [W]. There are no blocks for sources that a group neither reads nor writes."""
    normaliser: dict[str, Normaliser]
    threshold: dict[str, Tensor]
    """Score above which a feature is active at inference, per group: a scalar [] or one per feature [F]."""
    rank_by: str = "largest_norm"
    aggregation: str = "sum"
    row_k: dict[str, int] = field(default_factory=dict)
    """Per group, the number of features kept in every row (TopK); empty for other kinds of sparsity."""
    differences: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Sources that are differences of two others: name to (minuend, subtrahend)."""
    predictions: dict[str, Prediction] = field(default_factory=dict)
    """Of targets whose decoders write only what other sources do not tell linearly: what those tell, normalised."""
    trainings: int = 1
    """Trainings in which the features of `recurrence` were looked for."""
    recurrence: dict[str, Tensor] = field(default_factory=dict)
    """By group of features that stand for several trainings': the number that each was found in, int64 [F]."""
    identity: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By such a group: ids of its features [F]; see `trainer.crosscoder.identity`."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources in order."""
        return tuple(self.widths)

    @property
    def targets(self) -> tuple[str, ...]:
        """Sources that are reconstructed: those that some group writes, in order."""
        written = {source for group in self.groups for source in group.writes}
        return tuple(source for source in self.widths if source in written)

    @property
    def reconstructing(self) -> "Crosscoder":
        """The crosscoder without groups that are in no reconstruction; itself if there are none."""
        groups = tuple(group for group in self.groups if group.reconstructs)
        return self if len(groups) == len(self.groups) else self.with_groups(groups)

    def with_groups(self, groups: tuple[Group, ...]) -> "Crosscoder":
        """The crosscoder with some of its groups alone, which keep their places."""
        names = {group.name for group in groups}
        blocks = {f"{kind}.{source}.{group.name}" for kind, source, group in self.blocks() if group.name in names}
        blocks |= {f"encoder_bias.{name}" for name in names} | {f"decoder_bias.{source}" for source in self.widths}
        return replace(
            self,
            groups=groups,
            weights={name: weight for name, weight in self.weights.items() if name in blocks},
            threshold={name: value for name, value in self.threshold.items() if name in names},
            row_k={name: k for name, k in self.row_k.items() if name in names},
            recurrence={name: count for name, count in self.recurrence.items() if name in names},
            identity={name: ids for name, ids in self.identity.items() if name in names},
        )

    @property
    def features(self) -> int:
        """Size of the whole dictionary."""
        return self.groups[-1].stop

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.weights[f"encoder_bias.{self.groups[0].name}"].device

    def to(self, device: torch.device) -> "Crosscoder":
        """The same crosscoder with its tensors on a device; itself if they are there."""
        if self.device == device:
            return self
        return replace(
            self,
            weights={name: tensor.to(device) for name, tensor in self.weights.items()},
            normaliser={source: normaliser.to(device) for source, normaliser in self.normaliser.items()},
            threshold={group: tensor.to(device) for group, tensor in self.threshold.items()},
            predictions={source: prediction.to(device) for source, prediction in self.predictions.items()},
        )

    def normalise(self, rows: Rows) -> Rows:
        """Normalise raw activations, fp32; differences are taken of the raw ones."""
        raw = self.with_differences(rows)
        return {source: self.normaliser[source](to_device(raw[source], self.device)) for source in self.sources}

    def with_differences(self, rows: Rows) -> Rows:
        """Raw activations of a store's sources, with the crosscoder's differences added."""
        subtracted = {name: rows[one].float() - rows[other].float() for name, (one, other) in self.differences.items()}
        return rows | subtracted

    def read_factor(self, group: Group) -> float:
        """Factor of a group's inputs: 1 for a sum over the sources it reads, one over their number for a mean."""
        return 1.0 / len(group.reads) if self.aggregation == "mean" else 1.0

    def score_scale(self, group: Group) -> Tensor:
        """Score per unit of activation, for each feature of the group [F]: a norm over its decoders."""
        norms = [torch.linalg.vector_norm(self.weights[f"decoder.{s}.{group.name}"], dim=1) for s in group.writes]
        return ranking_norm(norms, self.rank_by)

    def group_encoders(self, group: Group) -> list[Tensor]:
        """Encoders of a group [F, W], one for each source it reads."""
        return [self.weights[f"encoder.{source}.{group.name}"] for source in group.reads]

    def int8_usable(self, group: Group, rows: Rows) -> bool:
        """Whether int8 search finds a group's pre-activations for these rows, and faster than the dense product."""
        return int8_search.usable([rows[source] for source in group.reads], self.group_encoders(group))

    def prepare_int8_search(self, group: Group, rows: Rows, reuse: Int8Search | None = None) -> Int8Search:
        """Int8 search for a group's pre-activations above a bound; normalised rows, overwriting `reuse`."""
        parts, bias = [rows[source] for source in group.reads], self.weights[f"encoder_bias.{group.name}"]
        factor = self.read_factor(group)
        return Int8Search(parts, self.group_encoders(group), bias, factor=factor, reuse=reuse)

    def pre_activations(self, group: Group, rows: Rows) -> Tensor:
        """Pre-activations of a group for normalised rows [R, F]."""
        total = sum(rows[s] @ self.weights[f"encoder.{s}.{group.name}"].to(rows[s].dtype).T for s in group.reads)
        assert isinstance(total, Tensor), "a group reads at least one source"
        return total * self.read_factor(group) + self.weights[f"encoder_bias.{group.name}"].to(total.dtype)

    @torch.no_grad()
    def encode(self, rows: Rows, *, compute: torch.dtype | None = None) -> Codes:
        """Active features of raw activations [R, W] per source, by the inference thresholds.

        The dense product runs in `compute`; float32 is the definition. Without it, int8 search replaces the
        product where it is usable, which gives the same to rounding; elsewhere the product runs in bfloat16.
        """
        return self.encode_normalised(self.normalise(rows), compute=compute)

    @torch.no_grad()
    def encode_normalised(self, rows: Rows, *, compute: torch.dtype | None = None) -> Codes:
        """Active features of normalised activations; see `encode`."""
        count = len(next(iter(rows.values())))
        parts = []
        for group in self.groups:
            flat, value = self._active_entries(group, {source: rows[source] for source in group.reads}, compute)
            parts.append((flat // group.features, flat % group.features + group.first, value))
        row, feature, value = (torch.cat(column) for column in zip(*parts, strict=True))
        order = torch.argsort(row, stable=True)
        return Codes(row[order], feature[order], value[order], count)

    def _active_entries(self, group: Group, rows: Rows, compute: torch.dtype | None) -> tuple[Tensor, Tensor]:
        """Flat indices, in order, and activations of a group's active entries [R, F]; rows of the sources it reads."""
        scale = self.score_scale(group).clamp_min(1e-12)
        bound = (self.threshold[group.name].to(self.device) / scale).clamp_min(0)
        if compute is None and group.name not in self.row_k and self.int8_usable(group, rows) and bool(bound.any()):
            return self.prepare_int8_search(group, rows).above(bound)
        compute = compute or torch.bfloat16
        low = {source: x.to(compute) for source, x in rows.items()}
        if group.name in self.row_k:
            selected = row_topk([self.pre_activations(group, low)], [scale], self.row_k[group.name])
            return selected.kept[0], selected.value[0]
        inputs = torch.cat(list(low.values()), dim=1) * self.read_factor(group)
        weight = torch.cat([part.to(compute) for part in self.group_encoders(group)], dim=1)
        bias = self.weights[f"encoder_bias.{group.name}"].to(compute)
        return dense_above(inputs, weight, bias, bound)

    @torch.no_grad()
    def decode(self, codes: Codes, *, raw: bool = True) -> Rows:
        """What the decoders write of every target [R, W], fp32; raw activations, or normalised ones with `raw=False`.

        That is the reconstruction, but for targets with a prediction: see `reconstruct`.
        """
        total = {
            source: self.weights[f"decoder_bias.{source}"].float().expand(codes.rows, -1).clone()
            for source in self.targets
        }
        for group in (one for one in self.groups if one.reconstructs):
            in_group = (codes.feature >= group.first) & (codes.feature < group.stop)
            row, feature = codes.row[in_group], codes.feature[in_group] - group.first
            pattern = SparsePattern(row, feature, rows=codes.rows, features=group.features)
            for source in group.writes:
                weight = self.weights[f"decoder.{source}.{group.name}"].float()
                total[source] += sum_by_row(pattern, codes.value[in_group], weight)
        return {source: self.normaliser[source].denormalise(x) if raw else x for source, x in total.items()}

    @torch.no_grad()
    def predicted(self, rows: Rows) -> Rows:
        """What the predictions tell of their targets [R, W], raw fp32, for raw activations; empty without any."""
        if not self.predictions:
            return {}
        normal = self.normalise(rows)
        return {source: self.normaliser[source].denormalise(one(normal)) for source, one in self.predictions.items()}

    @torch.no_grad()
    def reconstruct(self, rows: Rows, codes: Codes) -> Rows:
        """Reconstruction of every target [R, W], raw fp32, from raw activations and their codes."""
        predicted = self.predicted(rows)
        return {
            source: written + (predicted[source] - self.normaliser[source].mean.to(written.device))
            if source in predicted
            else written
            for source, written in self.decode(codes).items()
        }

    def decoder(self, source: str, features: np.ndarray | None = None) -> Tensor:
        """Decoder directions of all or some features in a source [n, W], fp32; zero where a feature does not write."""
        return self._directions("decoder", source, features, lambda group: source in group.writes)

    def encoder(self, source: str, features: np.ndarray | None = None) -> Tensor:
        """Encoder directions of all or some features from a source [n, W], fp32; zero where a feature reads not."""
        return self._directions("encoder", source, features, lambda group: source in group.reads)

    def _directions(
        self, kind: str, source: str, features: np.ndarray | None, present: Callable[[Group], bool]
    ) -> Tensor:
        width = self.widths[source]
        if features is not None:
            index = torch.as_tensor(features, dtype=torch.int64, device=self.device)
            some = torch.zeros(len(index), width, device=self.device)
            for group in filter(present, self.groups):
                inside = (index >= group.first) & (index < group.stop)
                block = self.weights[f"{kind}.{source}.{group.name}"].detach()
                some[inside] = block[index[inside] - group.first].float()
            return some
        parts = [
            self.weights[f"{kind}.{source}.{group.name}"].detach().float()
            if present(group)
            else torch.zeros(group.features, width, device=self.device)
            for group in self.groups
        ]
        return torch.cat(parts)

    def blocks(self) -> Iterator[tuple[str, str, Group]]:
        """Kind (`encoder` or `decoder`), source and group of every weight block."""
        for group in self.groups:
            yield from (("encoder", source, group) for source in group.reads)
            yield from (("decoder", source, group) for source in group.writes)

    def save(self, folder: Path) -> None:
        """Write crosscoder.safetensors, then crosscoder.json, the description."""
        with atomic_write(folder / "crosscoder.safetensors") as draft:
            tensors = to_file_layout(self.weights, self.threshold) | prediction_tensors(self.predictions)
            save_file(tensors | recurrence_tensors(self.recurrence), draft)
        sources = [
            {"name": s, "width": w, "scale": self.normaliser[s].scale, "mean": self.normaliser[s].mean.tolist()}
            for s, w in self.widths.items()
        ]
        description = {
            "format": FORMAT,
            "version": VERSION,
            "sources": sources,
            "groups": [asdict(group) for group in self.groups],
            "sparsity": {"rank_by": self.rank_by, "row_k": self.row_k},
            "aggregation": self.aggregation,
            "differences": self.differences,
            "predictions": {source: {"given": prediction.given} for source, prediction in self.predictions.items()},
            "trainings": self.trainings,
            "identity": self.identity,
        }
        write_json(folder / "crosscoder.json", description)

    @classmethod
    def load(cls, folder: Path) -> "Crosscoder":
        """Read a saved crosscoder onto the CPU.

        Raises CrosscoderError when a file is missing or damaged, or a tensor is missing, unexpected or misshapen.
        """
        description, tensors = read_files(folder)
        try:
            crosscoder = cls._from_description(description, tensors)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CrosscoderError(
                f"{folder}/crosscoder.json is damaged ({type(error).__name__}: {error}). Train or copy it again."
            ) from None
        check_shapes(crosscoder, folder)
        return crosscoder

    @classmethod
    def _from_description(cls, description: dict[str, Any], tensors: dict[str, Tensor]) -> "Crosscoder":
        widths = {source["name"]: int(source["width"]) for source in description["sources"]}
        normaliser = {
            source["name"]: Normaliser(torch.tensor(source["mean"], dtype=torch.float32), float(source["scale"]))
            for source in description["sources"]
        }
        groups = tuple(
            Group(**{**group, "reads": tuple(group["reads"]), "writes": tuple(group["writes"])})
            for group in description["groups"]
        )
        predictions = pop_predictions(description, tensors)
        recurrence = pop_recurrence(tensors)
        weights, threshold = from_file_layout(tensors)
        return cls(
            widths=widths,
            groups=groups,
            weights=weights,
            normaliser=normaliser,
            threshold=threshold,
            rank_by=description["sparsity"]["rank_by"],
            aggregation=description["aggregation"],
            row_k=description["sparsity"].get("row_k", {}),
            differences={name: (one, other) for name, (one, other) in description.get("differences", {}).items()},
            predictions=predictions,
            trainings=int(description.get("trainings", 1)),
            recurrence=recurrence,
            identity={name: tuple(map(str, ids)) for name, ids in description.get("identity", {}).items()},
        )


def check_shapes(crosscoder: Crosscoder, origin: Path) -> None:
    """Check that exactly the expected tensors are there, each with its shape. Raises CrosscoderError."""
    expected: dict[str, tuple[int, ...]] = {
        f"{k}.{s}.{g.name}": (g.features, crosscoder.widths[s]) for k, s, g in crosscoder.blocks()
    }
    expected |= {f"encoder_bias.{group.name}": (group.features,) for group in crosscoder.groups}
    expected |= {f"decoder_bias.{source}": (crosscoder.widths[source],) for source in crosscoder.targets}
    found = {name: tuple(tensor.shape) for name, tensor in crosscoder.weights.items()}
    for source, one in crosscoder.predictions.items():
        expected[f"prediction.{source}"] = (sum(crosscoder.widths[s] for s in one.given), crosscoder.widths[source])
        expected[f"prediction_offset.{source}"] = (crosscoder.widths[source],)
    beside = prediction_tensors(crosscoder.predictions) | recurrence_tensors(crosscoder.recurrence)
    found |= {name: tuple(tensor.shape) for name, tensor in beside.items()}
    expected |= {
        f"recurrence.{group.name}": (group.features,)
        for group in crosscoder.groups
        if group.name in crosscoder.recurrence
    }
    for name in expected.keys() | found.keys():
        if expected.get(name) != found.get(name):
            raise CrosscoderError(
                f"{origin}: tensor {name!r} has shape {found.get(name)}, expected {expected.get(name)} "
                "([features, width] in memory). The weights do not belong to this description."
            )
    missing = {group.name for group in crosscoder.groups} - crosscoder.threshold.keys()
    if missing:
        raise CrosscoderError(
            f"{origin}: no threshold for {', '.join(sorted(missing))}. Set the thresholds and save it again."
        )


def check_sources(crosscoder: Crosscoder, widths: Mapping[str, int], store: Path) -> None:
    """Check that a store with these widths holds every source the crosscoder needs. Raises CrosscoderError."""
    parts = {name: crosscoder.differences.get(name, (name,)) for name in crosscoder.sources}
    needed = {part: crosscoder.widths[name] for name, pair in parts.items() for part in pair}
    if not needed.items() <= widths.items():
        raise CrosscoderError(
            f"The crosscoder needs {_sources(needed)}, but the activation store {store} holds {_sources(widths)}. "
            "Train on this store, name the store it was trained on, or import it with the names that the store has."
        )


def _sources(widths: Mapping[str, int]) -> str:
    return ", ".join(f"{name} (width {width})" for name, width in widths.items())
