"""The smallest graph that computes the same."""

from graphopt.passes.fold.fold import Fold

__all__ = ["Fold"]
