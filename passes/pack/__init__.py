"""Weights stored compressed inside standard ONNX, decoded once at load."""

from graphopt.passes.pack.pack import Pack

__all__ = ["Pack"]
