"""Where the inputs of a model come from, and whether they fit.

A sample is one set of feeds: an array per model input. Samples come from files, from the user's own code, or from a
random generator, and are read one at a time, as often as wanted.
"""

from graphopt.samples.fit import Feeds
from graphopt.samples.generated import random_samples
from graphopt.samples.opening import open_samples
from graphopt.samples.stream import Samples

__all__ = ["Feeds", "Samples", "open_samples", "random_samples"]
