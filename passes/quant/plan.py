"""Plans: which node runs in which form; and the workshop that makes a model of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import walk_nodes
from graphopt.model import Model
from graphopt.passes.quant.audit import Audit, audit
from graphopt.passes.quant.blocks import quantize_blocks
from graphopt.passes.quant.calibrate import Calibration, bias_shift, input_shifts
from graphopt.passes.quant.dynamic import DynamicSite, quantize_dynamic, sites_in
from graphopt.passes.quant.insert import WeightStore, insert
from graphopt.passes.quant.opset import PER_CHANNEL
from graphopt.passes.quant.placement import Placement, place
from graphopt.passes.quant.ranges import Affine, RangeMethod
from graphopt.passes.quant.units import Unit, units_in
from graphopt.targets import Target

_AUDITS = 4  # un-quantizing what did not fuse may leave others alone


@dataclass(frozen=True)
class Plan:
    """Which nodes run in integers.

    Attributes:
        label: For the user, such as "static int8".
        static: Positions of the units with fixed ranges.
        dynamic: Positions of the sites with ranges found at run time.
        blocks: Positions of the sites with weights in blocks.
        ranges: How ranges are chosen.
    """

    label: str
    static: frozenset[int]
    dynamic: frozenset[int]
    ranges: RangeMethod
    blocks: frozenset[int] = frozenset()

    @property
    def nodes(self) -> list[int]:
        """Positions of all that run in integers, in graph order."""
        return sorted(self.static | self.dynamic | self.blocks)

    def without(self, positions: Iterable[int]) -> Plan:
        """Return the plan with some nodes left float."""
        gone = frozenset(positions)
        return replace(self, static=self.static - gone, dynamic=self.dynamic - gone, blocks=self.blocks - gone)

    def only(self, positions: frozenset[int]) -> Plan:
        """Return the plan with all other nodes left float."""
        static, dynamic, blocks = (part & positions for part in (self.static, self.dynamic, self.blocks))
        return replace(self, static=static, dynamic=dynamic, blocks=blocks)


@dataclass(frozen=True)
class Candidate:
    """A model made after a plan.

    Attributes:
        plan: The plan, less what did not fuse.
        model: The model.
        changed: Nodes that run in integers.
        audit: What the runtime made of it.
        unfused: Positions of the units that were taken back because they did not fuse.
    """

    plan: Plan
    model: Model
    changed: int
    audit: Audit
    unfused: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Written:
    """A model made after a plan, before anybody looked at it.

    Attributes:
        model: The model.
        placement: What runs in integers with fixed ranges.
        changed: Nodes that run in integers.
    """

    model: Model
    placement: Placement
    changed: int


@dataclass
class Workshop:
    """Makes models after plans; what they have in common is computed once.

    Attributes:
        model: The float model that all start from.
        target: Where it will run.
        units: What can run in integers with fixed ranges.
        sites: What can run in integers with ranges found at run time.
        calibration: Statistics; None without samples.
    """

    model: Model
    target: Target
    units: Sequence[Unit]
    sites: Sequence[DynamicSite]
    calibration: Calibration | None
    _store: WeightStore = field(init=False)
    _sizes: dict[str, int] = field(init=False)
    _corrected: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self._store = WeightStore(self.pairs, per_channel=self.model.opset >= PER_CHANNEL)
        self._sizes = self.calibration.sizes() if self.calibration is not None else {}
        taken = {str(node.name) for node in walk_nodes(self.model.graph) if node.name}
        for unit in self.units:
            if not unit.node.name:  # the audit finds nodes by name
                unit.node.name = unique_name(f"{unit.output.name}/{unit.node.op}", taken)

    @property
    def pairs(self) -> bool:
        """Whether 16-bit sums of pairs saturate on the target."""
        return self.target.weight_limit < 127

    def make(self, plan: Plan) -> Candidate:
        """Make the model of a plan, and take back what does not fuse."""
        refused: frozenset[int] = frozenset()
        for _ in range(_AUDITS):
            written = self.write(plan)
            names = {str(unit.node.name): unit.position for unit in written.placement.units}
            found = audit(written.model, names)
            left = frozenset(names[name] for name in found.unfused)
            if not left:
                break
            refused |= left
            plan = plan.without(left)
        return Candidate(plan, written.model, written.changed, found, refused)

    def placement(self, plan: Plan) -> Placement:
        """Return what runs in integers under a plan."""
        return place(self.units, self._sizes, plan.static)

    def parameters(self, placement: Placement, method: RangeMethod) -> dict[str, Affine]:
        """Return the parameters of every stored tensor."""
        return self.calibration.parameters(placement, self.units, method) if self.calibration is not None else {}

    def correct_means(self, plan: Plan) -> bool:
        """Let biases also take up what rounding the inputs does to the mean of the outputs; whether that is news."""
        if self._corrected == plan.ranges or self.calibration is None or not plan.static:
            return False
        placement = self.placement(plan)
        self._correct(placement)
        shifts = input_shifts(self.model, placement.units, self.parameters(placement, plan.ranges), self.calibration)
        for position, shift in shifts.items():
            self._store.bias_shift[position] = self._store.bias_shift[position] + shift
        self._corrected = plan.ranges
        return True

    def write(self, plan: Plan) -> Written:
        """Make the model of a plan, whatever the runtime makes of it."""
        model = self.model.copy()
        placement = self.placement(plan)
        parameters = self.parameters(placement, plan.ranges)
        units = units_in(model, placement.units)
        sites = sites_in(model, [site for site in self.sites if site.position in plan.dynamic])
        blocks = sites_in(model, [site for site in self.sites if site.position in plan.blocks])
        self._correct(placement)
        changed = quantize_dynamic(model, sites, pairs=self.pairs) if sites else 0
        changed += quantize_blocks(model, blocks) if blocks else 0
        if placement.units:
            changed += insert(model, units, placement, parameters, self._store)
        return Written(model, placement, changed)

    def _correct(self, placement: Placement) -> None:
        """Find the corrections of the biases that have a place in their unit."""
        for unit in placement.units:
            if unit.weight is None or unit.node.op == "MatMul" or unit.position in self._store.bias_shift:
                continue
            assert self.calibration is not None
            self._store.bias_shift[unit.position] = bias_shift(unit, self._store.weight(unit), self.calibration)
