"""Pruning of channels: which go together, which matter least, and how the rest makes up for them."""

from graphopt.passes.prune.channels.structured import prune_channels

__all__ = ["prune_channels"]
