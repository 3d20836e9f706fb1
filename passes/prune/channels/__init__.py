"""Structured pruning: channels that are removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.base import PassReport, Skip
from graphopt.context import Context
from graphopt.model import Model

if TYPE_CHECKING:
    from graphopt.passes.prune.prune import Prune

__all__ = ["prune_channels"]


def prune_channels(model: Model, context: Context, options: Prune) -> PassReport:
    """Remove channels in place; until the analysis is here, leave all alone and say so."""
    return PassReport(0, (Skip("model", "channels cannot be removed yet"),))
