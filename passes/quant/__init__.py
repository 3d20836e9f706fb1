"""8-bit integers for weights and activations."""

from graphopt.passes.quant.quant import Quant

__all__ = ["Quant"]
