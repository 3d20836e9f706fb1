"""16-bit floats: for storage, or for the whole graph."""

from graphopt.passes.half.half import Half

__all__ = ["Half"]
