"""The equalize pass: channels brought to like ranges, so that few integers describe them all."""

from graphopt.passes.equalize.equalize import Equalize

__all__ = ["Equalize"]
