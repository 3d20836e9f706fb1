"""Gradients of a model's inner tensors and outputs with respect to its weights, as more nodes of the same graph.

ONNX Runtime computes them like everything else, so that weights can be tuned without a training framework.
"""

from graphopt.gradients.backward import Gradients, add_gradients

__all__ = ["Gradients", "add_gradients"]
