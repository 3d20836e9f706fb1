"""An example of a pass that lives in a distribution of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt import Context, Model, Pass, PassReport, Skip
from graphopt.ir.graph import walk_nodes


@dataclass(frozen=True)
class StripDocs(Pass):
    """Remove the doc strings of nodes, where exporters leave stack traces.

    Attributes:
        longer_than: Doc strings of at most this many characters stay.
    """

    name: ClassVar[str] = "strip-docs"
    lossless: ClassVar[bool] = True
    longer_than: int = 0

    def __post_init__(self) -> None:
        if self.longer_than < 0:
            raise ValueError(f"longer-than must be 0 or more, not {self.longer_than}")

    def run(self, model: Model, context: Context) -> PassReport:
        """Edit the model in place and report."""
        changed, skipped = 0, []
        for node in walk_nodes(model.graph):
            residue = getattr(node, "residue", None)
            if residue is None or not residue.doc_string:
                continue
            if len(residue.doc_string) <= self.longer_than:
                skipped.append(Skip(node.name, f"its doc string has only {len(residue.doc_string)} characters"))
                continue
            residue.ClearField("doc_string")
            changed += 1
        return PassReport(changed, tuple(skipped))
