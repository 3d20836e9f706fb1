"""Each distinct weight stored once."""

from graphopt.passes.share.share import Share

__all__ = ["Share"]
