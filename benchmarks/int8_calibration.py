"""Time what finds the ranges of activations against plain inference over the same samples; runs alone.

    python -m benchmarks.int8_calibration MODEL SAMPLES

Prints a line of JSON: seconds of one run of the float model over all samples, seconds of the observation that quant
asks for, the number of samples, and the largest resident set in bytes before and after the observation. Both run with
one thread, and the seconds are the processor's: other work on the machine hardly changes them.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import click

from graphopt.api import compress
from graphopt.model import Model
from graphopt.observe import Observer
from graphopt.opsets import PER_CHANNEL, raised
from graphopt.passes.quant.nodes.units import find_units
from graphopt.passes.quant.numbers.calibrate import calibrate
from graphopt.runtime.session import open_session
from graphopt.samples import Samples, open_samples
from graphopt.shapes import infer_shapes
from graphopt.targets import get_target


@click.command()
@click.argument("path", metavar="MODEL", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("data", metavar="SAMPLES", type=click.Path(exists=True, path_type=Path))
def main(path: Path, data: Path) -> None:
    """Measure and print."""
    model = compress(path, "fold,share", benchmark=False).model
    infer_shapes(model)
    model, _ = raised(model, PER_CHANNEL, "its integer operators")
    units, _ = find_units(model.graph, get_target("cpu"), model.opset)
    samples = open_samples(data, model.interface)
    inference, before = infer(model, samples), peak_bytes()
    start = time.process_time()
    calibrate(model, units, Observer(samples))
    figures = {
        "samples": len(samples),
        "inference_seconds": inference,
        "calibration_seconds": time.process_time() - start,
        "peak_before_bytes": before,
        "peak_bytes": peak_bytes(),
    }
    click.echo(json.dumps(figures))


def infer(model: Model, samples: Samples) -> float:
    """Return the seconds of reading all samples and running the float model on them."""
    with open_session(model) as session:
        session.run(next(iter(samples)))
        start = time.process_time()
        for feeds in samples:
            session.run(feeds)
        return time.process_time() - start


def peak_bytes() -> int:
    """Return the largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
