"""Size mode: weights in few bits, layer after layer, each fitted to what the compressed layers before it hand on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.biases import Bias, find_bias
from graphopt.compensate.palette import fit_palette
from graphopt.compensate.trellis import MOST_BITS, Trellis
from graphopt.ir.graph import payload
from graphopt.model import Model
from graphopt.moments import LayerMoments, layer_moments
from graphopt.passes.pack.allocate import MEASURED
from graphopt.passes.pack.chain import can_chain, chain, chain_whole, fit_levels, tails
from graphopt.passes.pack.coded import Coded
from graphopt.passes.pack.rounding import Rounding, stored_bias
from graphopt.passes.pack.sensitivity import OutputLoss
from graphopt.passes.pack.shrink import shrink
from graphopt.passes.pack.tuning import Tuning, tune
from graphopt.passes.pack.units import Unit
from graphopt.progress import Progress
from graphopt.samples import Samples
from graphopt.staged import staged_moments

_STAGES = 12  # times that moments are taken anew on the compressed prefix
_BLEND = 0.3  # share of the diagonal; fits unseen samples best, or nearly, on conv nets, MLPs and transformers
_SAMPLES = 96  # that moments and gradients rest on; more cost time and hardly change them


class SizeMode:
    """Rounds the weights of one model, or of its copies.

    Linear layers are fitted to the moments of their inputs, and their biases take up the mean of what is lost; other
    weights (embeddings, recurrent layers, bodies) are rounded by themselves, and before all layers, so that these can
    make up for it.

    Args:
        samples: Inputs to fit to; without them every weight is rounded by itself.
        progress: Where it reports.
        rng: Draws the weights that levels of trellises are fitted to.
    """

    def __init__(self, samples: Samples | None, progress: Progress, rng: np.random.Generator) -> None:
        self._samples = samples
        self._progress = progress
        self._rng = rng
        self._trellises: dict[
            tuple[int, int], Trellis
        ] = {}  # by kind and bits; those of the first model serve its copies
        self._alone: dict[tuple[int, int], Coded] = {}  # by place of the unit and bits: trials share them

    def round(self, model: Model, units: Sequence[Unit], bits: Sequence[int]) -> list[Rounding]:
        """Put weights on levels, in place, and return what became of each, in the order that it was done.

        Args:
            model: The model that is rounded.
            units: Its weights; those of a copy must come in the same order.
            bits: Of each.
        """
        shown = {id(tensor) for tensor in model.graph.outputs}
        place = {id(unit.layer): index for index, unit in enumerate(units) if self._is_fitted(unit)}
        self._fit_trellises(units, bits)
        found = []
        for index, unit in enumerate(units):
            if id(unit.layer) not in place:
                found.append(Rounding(unit, self._by_itself(index, unit, bits[index])))
                found[-1].put(found[-1].coded)
        if self._samples is None:
            return found
        layers = [unit.layer for unit in units if id(unit.layer) in place and unit.layer is not None]
        samples = self._samples.take(_SAMPLES)
        for moments in staged_moments(model, layers, samples, stages=_STAGES, progress=self._progress):
            index = place[id(moments.layer)]
            found.append(self._rounded(units[index], moments, bits[index], find_bias(moments.layer, shown)))
        return found

    def tune(self, original: Model, rounded: Model, roundings: Sequence[Rounding]) -> Tuning:
        """Tune what has become of a model, in place, see `passes/pack/tuning.py`.

        Args:
            original: As it was before it was rounded.
            rounded: What has become of it.
            roundings: Its weights.
        """
        assert self._samples is not None
        return tune(original, rounded, roundings, self._samples.take(_SAMPLES), self._progress)

    def losses(self, model: Model, units: Sequence[Unit]) -> list[float]:
        """Return for each weight what the outputs lose when it alone is rounded to 4 bits; the model stays as it is."""
        assert self._samples is not None
        fitted, judged = self._samples.halves()
        self._fit_trellises(units, [MEASURED] * len(units))
        judge, shown = OutputLoss(model, judged), {id(tensor) for tensor in model.graph.outputs}
        found = [0.0] * len(units)
        place = {id(unit.layer): index for index, unit in enumerate(units) if self._is_fitted(unit)}
        for index, unit in enumerate(units):
            if id(unit.layer) not in place:
                before = payload(unit.constant)
                unit.constant.values = unit.stored(self._by_itself(index, unit, MEASURED).decoded())
                found[index] = judge.of(model)
                unit.constant.values = before
        layers = [unit.layer for unit in units if id(unit.layer) in place and unit.layer is not None]
        for moments in layer_moments(model, layers, fitted.take(_SAMPLES), progress=self._progress):
            index = place[id(moments.layer)]
            bias = find_bias(moments.layer, shown)
            touched = [moments.layer.weight, *([bias.constant] if bias is not None else [])]
            originals = [payload(constant) for constant in touched]
            self._rounded(units[index], moments, MEASURED, bias)
            found[index] = judge.of(model)
            for constant, before in zip(touched, originals, strict=True):
                constant.values = before
        return found

    def _is_fitted(self, unit: Unit) -> bool:
        return unit.layer is not None and self._samples is not None

    def _by_itself(self, index: int, unit: Unit, bits: int) -> Coded:
        key = index, bits
        if key not in self._alone:
            self._alone[key] = self._coded(unit, None, bits)
        return self._alone[key]

    def _rounded(self, unit: Unit, moments: LayerMoments, bits: int, bias: Bias | None) -> Rounding:
        """Put a layer's weight on levels, in place, and let its bias make up for the mean.

        Few samples show correlations of inputs that other samples do not have, so the moments are blended with their
        diagonal.
        """
        second = moments.second if bias is None else moments.covariance
        blended = (1 - _BLEND) * second
        np.einsum("gkk->gk", blended)[...] = np.einsum("gkk->gk", second)
        matrix = unit.matrix()
        coded = self._coded(unit, blended, bits)
        decoded = coded.decoded()
        if bias is not None:
            bias.shift(np.einsum("grk,gk->gr", matrix - decoded, moments.mean).ravel())
            if unit.scale is None:
                bias.constant.values = stored_bias(bias.constant.values)
        unit.constant.values = unit.stored(decoded)
        return Rounding(unit, coded, bias.constant if bias is not None else None)

    def _coded(self, unit: Unit, moment: np.ndarray | None, bits: int) -> Coded:
        """Return the codes of a weight: on a trellis where it can be, else on levels of its own."""
        if bits <= MOST_BITS and can_chain(unit):
            trellis = self._trellises[tails(unit), bits]
            if unit.scale is None:
                return chain(unit.matrix(), moment, trellis)
            return chain_whole(unit.matrix(), moment, trellis, unit.scale)
        if unit.scale is not None:
            palette = fit_palette(unit.matrix(), moment, bits, unit.scale, whole=True)
            return Coded(palette.codes, palette.levels.astype(np.float32), unit.scale.astype(np.float32))
        return shrink(unit.matrix(), moment, bits, sparse=unit.is_sparse)

    def _fit_trellises(self, units: Sequence[Unit], bits: Sequence[int]) -> None:
        """Fit the levels of trellises of so many bits to the weights as they are before any is rounded."""
        kinds = {id(unit): tails(unit) for unit in units if can_chain(unit)}
        pairs = zip(units, bits, strict=True)
        wanted = {(kinds[id(unit)], count) for unit, count in pairs if id(unit) in kinds and count <= MOST_BITS}
        for kind, count in sorted(wanted - self._trellises.keys()):
            alike = [unit for unit in units if kinds.get(id(unit)) == kind]
            self._trellises[kind, count] = fit_levels(alike, count, self._rng)
