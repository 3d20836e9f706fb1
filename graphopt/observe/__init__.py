"""Statistics of inner tensors over the samples: one streaming run serves all who ask.

Activations are reduced inside ONNX Runtime, by nodes that a copy of the model gets; only the small results leave it.
Memory is therefore bounded by the model and the statistics, not by the number of samples.
"""

from graphopt.observe.observations import Observations
from graphopt.observe.observer import Observer
from graphopt.observe.statistics import ChannelMean, ChannelRange, Histogram, Range, SecondMoment, Statistic

__all__ = ["ChannelMean", "ChannelRange", "Histogram", "Observations", "Observer", "Range", "SecondMoment", "Statistic"]
