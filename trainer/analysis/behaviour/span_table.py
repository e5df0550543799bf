"""How far two models' predictions are apart on every span of text that was compared, as a file of the run."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.run.folder import atomic_write


@dataclass(frozen=True)
class SpanTable:
    """Spans of one pair of models, by sequence and byte. Axis N: spans."""

    base: int
    """Index of the pair's first source in the store."""
    source: int
    """Index of the other."""
    sequence: np.ndarray
    """Sequence of each span, int64 [N]."""
    byte_start: np.ndarray
    """Byte of the sequence's text where it begins: what comes there is predicted, int64 [N]."""
    byte_end: np.ndarray
    """int64 [N]."""
    apart: np.ndarray
    """How far the models are apart: Jensen-Shannon divergence or difference of surprisals, nats [N]."""
    reference: np.ndarray
    """The same for the base and a noised copy of it [N]; NaN where there was none."""
    control: np.ndarray
    """The same for another noised copy [N]; NaN where there was none."""
    surprise: np.ndarray
    """Surprisal of the span under the base and the source, nats [2, N]."""
    expected: np.ndarray
    """Text of the token that the base and the source expect most, object [2, N]."""

    @property
    def has_reference(self) -> bool:
        """Whether there were noised copies."""
        return bool(len(self.reference)) and not np.isnan(self.reference).any()

    @property
    def alike(self) -> bool:
        """Whether the models predict the same everywhere, but for rounding."""
        return not len(self.apart) or not self.apart.mean() > LEAST_APART


LEAST_APART = 1e-6
"""Mean divergence, in nats, up to which two models predict the same: it is what rounding leaves."""
PER_MODEL = ("surprise", "expected")
"""Fields with a row per model of the pair."""


def write_spans(path: Path, tables: list[SpanTable]) -> None:
    """Write the spans of all pairs."""
    parts = []
    for one in tables:
        columns = {"base": np.full(len(one.sequence), one.base), "source": np.full(len(one.sequence), one.source)}
        for field in fields(one)[2:]:
            values = getattr(one, field.name)
            if field.name in PER_MODEL:
                columns |= {f"base_{field.name}": values[0], f"source_{field.name}": values[1]}
            else:
                columns[field.name] = values
        parts.append(pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()}))
    with atomic_write(path) as draft:
        pq.write_table(pa.concat_tables(parts) if parts else pa.table({"base": pa.array([], pa.int64())}), draft)


def read_spans(path: Path) -> list[SpanTable]:
    """The spans of every pair; none without the file, or where nothing was compared."""
    if not path.is_file():
        return []
    table = pq.read_table(path)
    if not len(table):
        return []
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    found = []
    for base, source in np.unique(np.stack([columns["base"], columns["source"]], axis=1), axis=0).tolist():
        of_pair = (columns["base"] == base) & (columns["source"] == source)
        some = {name: values[of_pair] for name, values in columns.items()}
        per_model = {name: np.stack([some[f"base_{name}"], some[f"source_{name}"]]) for name in PER_MODEL}
        single = {field.name: some[field.name] for field in fields(SpanTable)[2:] if field.name not in PER_MODEL}
        for name in ("apart", "reference", "control"):
            single[name] = single[name].astype(np.float64)
        found.append(SpanTable(base, source, **single, **per_model))
    return found
