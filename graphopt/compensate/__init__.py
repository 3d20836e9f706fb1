"""Second-order error compensation: put a layer's weights on a grid so that its *outputs* change least.

A layer is ``y = x W^T`` with weights ``W`` of shape [rows, inputs] (a convolution in im2col form, one group at a time)
and ``H = X^T X / n`` of shape [inputs, inputs], the second moment of its inputs. Replacing ``W`` by ``Q`` costs
``tr((W - Q) H (W - Q)^T)``, the mean squared error of its outputs, summed over rows. Everything here minimizes that.
"""

from graphopt.compensate.descent import coordinate_descent
from graphopt.compensate.gptq import damped, gptq
from graphopt.compensate.grid import Grid, PaletteGrid, UniformGrid
from graphopt.compensate.loss import output_loss
from graphopt.compensate.patterns import Blocks, NofM, Pattern, Unstructured
from graphopt.compensate.refit import refit_block_scales, refit_levels, refit_scales
from graphopt.compensate.uniform import Integers, fit_integers, start_grid

__all__ = [
    "Blocks",
    "Grid",
    "Integers",
    "NofM",
    "PaletteGrid",
    "Pattern",
    "UniformGrid",
    "Unstructured",
    "coordinate_descent",
    "damped",
    "fit_integers",
    "gptq",
    "output_loss",
    "refit_block_scales",
    "refit_levels",
    "refit_scales",
    "start_grid",
]
