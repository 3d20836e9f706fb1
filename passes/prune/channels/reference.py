"""What later rounds are fitted to: the model from before all of them.

What one round has made is no target for the next one: its errors would be handed on. So the whole model is kept beside
the pruned one, in the coordinates that the first round has turned this to; for each layer it is known which of its
channels are left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from graphopt.model import Model


@dataclass(frozen=True, eq=False)
class Reference:
    """A whole model, and what is left of its channels.

    Attributes:
        model: It has all the nodes of the pruned one, and the names of their outputs.
        rows: The channels that are left of a layer's output, int [left], by its name; of others all are.
    """

    model: Model
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)

    def after(self, rows: Mapping[str, np.ndarray]) -> Reference:
        """Return what it is once only some of the channels that are left are left of layers."""
        fresh = {name: self.rows[name][left] if name in self.rows else left for name, left in rows.items()}
        return Reference(self.model, {**self.rows, **fresh})
