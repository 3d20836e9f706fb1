"""The pass `prune`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from graphopt.base import Pass, PassReport
from graphopt.compensate import NofM
from graphopt.context import Context
from graphopt.model import Model
from graphopt.passes.prune.channels import prune_channels
from graphopt.passes.prune.masks import prune_masks
from graphopt.passes.prune.options import CHANNELS, Criterion, Scope, Unit, parse_pattern
from graphopt.passes.prune.scores import meanings

_BLOCK = "4x4"  # outputs times inputs


@dataclass(frozen=True)
class Prune(Pass):
    """Set the weights that matter least to zero and fit the others to make up for them, or remove whole channels.

    ``W -> W'`` with zeros where the pattern has them. With samples, the zeros of Conv, Gemm and MatMul are chosen by
    second order and the other weights are the least squares solution of ``min E |y - W' x|^2``: y is what the layer
    gave before, x what it reads from the pruned layers before it; biases take up the mean. Samples that are pictures
    count with cut-outs of them, sequences of integers with spliced ones. How closely weights are fitted, and how a
    ratio is shared out among them, is chosen on a quarter of the samples, unlike the others, that a first fit does not
    see. At last all that is not zero is tuned together by gradients (`graphopt/gradients`), towards the outputs of the
    original, as far as samples gain by it that are kept apart. Other weights (of ConvTranspose, LSTM, GRU, RNN, in
    bodies), and all without samples, lose those of smallest magnitude.

    Weights that are zero already count; among equals the first go. Biases, norms and embeddings are not pruned. A
    weight that several nodes share is pruned once. Skipped with a reason is what somebody else reads too, what a caller
    may override, what is quantized already, and what the pattern does not fit.

    Zeros make no runtime of dense kernels faster; they make the file smaller once it is compressed. Removed channels
    (pattern=channels) make it smaller and faster by themselves. Channels, heads, hidden units and whole residual
    branches go that the layers reading them can best do without (group OBS), as many of each as the model's outputs
    bear; channels between linear layers go in the coordinates that matter least. Then all layers are fitted front to
    back, those of branches to what their shortcuts leave; those of which fewer observations than inputs are seen are
    only scaled, to vary as they did. More than a fifth of a cost goes in several such rounds, each fitted to the model
    from before all of them; up to half of it also at once, and what comes closer to the original stays and is tuned.

    The ratio of channels is one of the model as the pass finds it: what went before has left no trace, so that a second
    run takes the same fraction once more. Zeros are seen, and a second run finds as many as it wants.

    Sources: Frantar and Alistarh, "SparseGPT", arXiv:2301.00774, and "Optimal Brain Compression", arXiv:2208.11580; Han
    et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015.

    Attributes:
        pattern: unstructured; NofM, such as 2of4, where N of M neighbouring inputs stay; block; or channels.
        ratio: Fraction to take away, in [0, 1), or auto, as much as the loss allows; see budget. With NofM it says how
            much of what the pattern fits takes it, so all of it is 0.5 for 2of4.
        budget: Part of the limit on the loss that ratio=auto may use up; the rest is left to later passes.
        of: What the ratio is a fraction of; latency is for channels only.
        criterion: How a weight's worth is measured. auto is second order (obs) with samples, else magnitude (l1). obs,
            wanda and fluctuation look at what layers read; variance is for groups of weights.
        scope: Whether each weight loses the ratio (layer), or all together, compared by what the outputs lose (global)
            or by which part of its outputs each layer loses (adaptive). Without samples the energy of weights counts.
        block: Outputs times inputs of a block.
        threshold: Zero what is at most this large, instead of a ratio.
        reconstruct: Whether what stays is fitted to the original outputs, where there are samples.
        embeddings: Whether tables that Gather reads are pruned as well.
        layers: Fractions of the channels that single layers give up, the others sharing the rest of the ratio:
            NAME=FRACTION, joined by "+", names with wildcards; 0 leaves a layer alone.
    """

    name: ClassVar[str] = "prune"
    lossless: ClassVar[bool] = False
    requires: ClassVar[tuple[str, ...]] = ("fold",)

    pattern: str = "unstructured"
    ratio: float | Literal["auto"] = "auto"
    budget: float = 0.25
    of: Unit = "weights"
    criterion: Criterion = "auto"
    scope: Scope = "adaptive"
    block: str = _BLOCK
    threshold: float | None = None
    reconstruct: bool = True
    embeddings: bool = False
    layers: str = ""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ValueError: One is out of its range, or two contradict each other.
        """
        if self.ratio != "auto" and not 0 <= self.ratio < 1:
            raise ValueError(f"ratio must be in [0, 1) or auto, not {self.ratio}")
        if not 0 < self.budget <= 1:
            raise ValueError(f"budget must be in (0, 1], not {self.budget}")
        for option, allowed in (("of", Unit), ("criterion", Criterion), ("scope", Scope)):
            if getattr(self, option) not in get_args(allowed):
                raise ValueError(f"{option} must be {'|'.join(get_args(allowed))}, not '{getattr(self, option)}'")
        if self.pattern == CHANNELS:
            self._check_channels()
            return
        if self.layers:
            raise ValueError("layers are those of pattern=channels")
        pattern = parse_pattern(self.pattern, self.block)
        if self.of == "latency":
            raise ValueError("of=latency needs pattern=channels: zeros save no time")
        if self.criterion == "variance" and self.pattern != "block":
            raise ValueError("criterion=variance compares groups of weights: use pattern=block or channels")
        if self.threshold is not None and (self.threshold < 0 or isinstance(pattern, NofM)):
            raise ValueError("threshold must be at least 0 and goes with pattern=unstructured or block")
        if self.threshold is not None and self.ratio != "auto":
            raise ValueError("threshold and ratio exclude each other: either says how much goes")
        if self.block != _BLOCK and self.pattern != "block":
            raise ValueError("block is the size of the blocks of pattern=block")

    def _check_channels(self) -> None:
        if self.threshold is not None or self.embeddings or self.block != _BLOCK:
            raise ValueError("threshold, embeddings and block are for zeros, not for pattern=channels")
        if any(not 0 <= ratio <= 1 for ratio in self.stated_layers.values()):
            raise ValueError(f"fractions of layers must be in [0, 1], not as in '{self.layers}'")

    @property
    def stated_layers(self) -> Mapping[str, float]:
        """The fraction that the user states for layers, by the pattern of their names.

        Raises:
            ValueError: It cannot be read.
        """
        pairs = [item.rpartition("=") for item in self.layers.split("+") if item]
        try:
            found = {name: float(value) for name, _, value in pairs}
        except ValueError:
            found = {"": 0.0}
        if "" in found:
            raise ValueError(f"layers must be NAME=FRACTION, joined by '+', not '{self.layers}'")
        return found

    @classmethod
    def parts(cls) -> Mapping[str, str]:
        """Return the criteria, each with what it is and its source."""
        return meanings()

    def run(self, model: Model, context: Context) -> PassReport:
        """Prune in place; see the class."""
        if self.pattern == CHANNELS:
            return prune_channels(model, context, self)
        return prune_masks(model, context, self)
