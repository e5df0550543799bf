"""The list of what a run reports, and the rows of its tables."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Findings:
    """Rows of the tables `finding`, `finding_member` and `passage`, without their ranks."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    members: list[list[dict[str, Any]]] = field(default_factory=list)
    passages: list[list[dict[str, Any]]] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)

    def add(
        self, margin: float, row: dict[str, Any], members: list[dict[str, Any]], passages: list[dict[str, Any]]
    ) -> None:
        """Add a finding."""
        self.margins.append(margin)
        self.rows.append(row)
        self.members.append(members)
        self.passages.append(passages)

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Rows by table, ranked by margin; features after which predictions differ come last.

        Those tell of one dictionary, where a claim has come back in other trainings and a kind of text needs none.
        """
        tables: dict[str, list[dict[str, Any]]] = {"finding": [], "finding_member": [], "passage": []}
        order = sorted(range(len(self.rows)), key=lambda at: (self.rows[at]["kind"] == "divergence", -self.margins[at]))
        for rank, at in enumerate(order):
            tables["finding"].append({"finding": rank, **self.rows[at]})
            tables["finding_member"] += [{"finding": rank, "passage": None, **member} for member in self.members[at]]
            for passage in self.passages[at]:
                number = len(tables["passage"])
                tables["passage"].append({"passage": number, **passage})
                member = {"finding": rank, "feature": None, "passage": number, "share": 1.0}
                tables["finding_member"].append(member)
        return tables
