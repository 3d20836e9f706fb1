"""Pruning: set the weights that matter least to zero."""

from graphopt.passes.prune.prune import Prune

__all__ = ["Prune"]
