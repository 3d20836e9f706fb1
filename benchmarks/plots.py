"""What drawings of benchmarks have in common: their look, and the same bytes for the same figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"graphopt": "#1f6feb", "onnxruntime": "#d9730d", "float": "#444444"}
_WIDTH = 3.9  # inches of a panel


def figure(panels: int, *, height: float, share_y: bool = False) -> tuple[Figure, Sequence[Axes]]:
    """Return a drawing of several panels side by side.

    Args:
        panels: How many, 1 or more.
        height: Inches.
        share_y: Whether they have one vertical axis.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.hashsalt": "graphopt", "svg.fonttype": "none", "font.size": 8})
    drawn = Figure(figsize=(_WIDTH * panels, height), layout="constrained")
    return drawn, drawn.subplots(1, panels, squeeze=False, sharey=share_y)[0]


def save(drawn: Figure, path: Path) -> None:
    """Write a drawing as SVG, without a date."""
    drawn.savefig(path, format="svg", metadata={"Date": None})
