"""How far a model is from another one, with the gradients of that, as a model of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.gradients.backward import add_gradients
from graphopt.gradients.tape import Tape
from graphopt.model import Model
from graphopt.runtime.session import open_session
from graphopt.samples import Feeds
from graphopt.shapes import infer_shapes, shapes_for


class Objective:
    """The squared error of tensors of a model, each over its own scale, and its gradients.

    Args:
        model: Stays as it is; its outputs are the tensors. Opset 13 or later.
        weights: Names of the weights and biases of its linear layers whose gradients are wanted.
        scales: What the mean squared error of each output is divided by.
        feeds: One sample, for the shapes.

    Attributes:
        weights: Those whose gradients are known, as constants of its own; give them other values between sessions.
        stops: Names of nodes before which no gradients are known.
        targets: Number of tensors that are compared.
    """

    def __init__(self, model: Model, weights: Collection[str], scales: Sequence[float], feeds: Feeds) -> None:
        self._model = model.copy()
        infer_shapes(self._model)
        graph = self._model.graph
        self._fed: dict[str, str] = {}
        tape = Tape(graph, shapes_for(self._model, feeds))
        errors, seeds = [], []
        self.targets = len(graph.outputs)
        for output, scale in zip(list(graph.outputs), scales, strict=True):
            target = tape.input(f"target/{output.name}")
            self._fed[output.name] = target.name
            lack = tape.op("Sub", output, target)
            part = tape.op("Div", lack, tape.op("Mul", tape.op("Cast", tape.op("Size", lack), to=1), float(scale)))
            errors.append(tape.total(tape.op("Mul", lack, part), range(len(tape.shape(output))), keep=False))
            seeds.append((output, tape.op("Mul", part, 2.0)))
        mine = [node.inputs[i] for node in graph.nodes for i in (1, 2) if _holds(node, i, weights)]
        found = add_gradients(tape, seeds, mine)
        self.stops = found.stops
        self.weights = [item for item in mine if item.name in found.of]
        self._slopes = [str(found.of[item.name].name) for item in self.weights]
        whole = tape.op("Sum", *errors)
        self._total = str(whole.name)
        graph.outputs = [whole, *(found.of[item.name] for item in self.weights)]
        for tensor in graph.outputs:
            tensor.dtype, tensor.shape = np.float32, None

    def error(self, samples: Iterable[tuple[Feeds, Mapping[str, np.ndarray]]]) -> float:
        """Return the sum of all errors; `samples` as for `gradients`."""
        return float(self._sums(samples, [self._total])[0])

    def gradients(self, samples: Iterable[tuple[Feeds, Mapping[str, np.ndarray]]]) -> list[np.ndarray]:
        """Return the gradient of the sum of all errors for each weight, summed over samples.

        Args:
            samples: What the model is fed, and what its outputs should be, by name.
        """
        return self._sums(samples, self._slopes)

    def _sums(
        self, samples: Iterable[tuple[Feeds, Mapping[str, np.ndarray]]], outputs: Sequence[str]
    ) -> list[np.ndarray]:
        """Return sums over samples of tensors of the model, with the present weights."""
        sums: list[np.ndarray] = []
        with open_session(self._model) as session:
            for feeds, targets in samples:
                named = {fed: targets[name] for name, fed in self._fed.items()}
                found = list(session.run({**feeds, **named}, outputs).values())
                sums = [total + item for total, item in zip(sums, found, strict=True)] if sums else found
        return sums


def _holds(node: gs.Node, index: int, wanted: Collection[str]) -> bool:
    """Whether an input of a linear layer is one of the weights."""
    return (
        index < len(node.inputs) and isinstance(node.inputs[index], gs.Constant) and node.inputs[index].name in wanted
    )
