"""The workshop that makes a model of each plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from graphopt.ir.exporter import unique_name
from graphopt.ir.graph import walk_nodes
from graphopt.model import Model
from graphopt.opsets import PER_CHANNEL
from graphopt.passes.quant.accounting.accounting import Audit, audit
from graphopt.passes.quant.nodes.placement import Placement, place
from graphopt.passes.quant.nodes.sites import MATRICES, DynamicSite, site_size, sites_in
from graphopt.passes.quant.nodes.units import Unit, outputs_of_scopes, units_in
from graphopt.passes.quant.numbers.calibrate import Calibration, bias_shift, extended
from graphopt.passes.quant.numbers.fit import fit_weights
from graphopt.passes.quant.numbers.ranges import METHODS, Affine, RangeMethod
from graphopt.passes.quant.numbers.smooth import Smoothing, smooth, undo
from graphopt.passes.quant.numbers.store import WeightStore, weight_key
from graphopt.passes.quant.search.balance import Balance, read_outside, saved_bytes
from graphopt.passes.quant.search.candidates import Candidate, Written
from graphopt.passes.quant.search.costs import measured_costs
from graphopt.passes.quant.search.errors import OutputError
from graphopt.passes.quant.search.plans import Fallback, Plan
from graphopt.passes.quant.search.switchboard import Rounding, Switchboard, Twin
from graphopt.passes.quant.search.twins import block_twin, site_twin, tensor_roundings, unit_twin
from graphopt.passes.quant.writing.blocks import quantize_blocks, tied_tables
from graphopt.passes.quant.writing.duplicates import share_integers
from graphopt.passes.quant.writing.dynamic import quantize_dynamic
from graphopt.passes.quant.writing.insert import insert
from graphopt.passes.quant.writing.tables import into_integers, merge_tables, transpose_integers
from graphopt.runtime.profile import NodeTime
from graphopt.samples import Samples
from graphopt.targets import Target


@dataclass
class Workshop:
    """Makes models after plans; what they have in common is computed once.

    Attributes:
        model: The float model that all start from.
        target: Where it will run.
        units: What can run in integers with fixed ranges.
        sites: What can run in integers with ranges found at run time.
        calibration: Statistics; None without samples.
        samples: What weights are fitted on; None without.
        smoothings: What was done to the channels of tensors of the model.
    """

    model: Model
    target: Target
    units: Sequence[Unit]
    sites: Sequence[DynamicSite]
    calibration: Calibration | None
    samples: Samples | None = None
    smoothings: list[Smoothing] = field(default_factory=list)
    _store: WeightStore = field(init=False)
    _sizes: dict[str, int] = field(init=False)

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
        """Make the model of a plan, and take back what does not fuse, which may leave others alone, until all does.

        Where another runtime makes the kernels, there is only its table to go by.
        """
        if not self.target.fuses_in_onnxruntime:
            written = self.write(plan)
            kernels = Counter(unit.kernel.becomes for unit in written.placement.units)
            return Candidate(plan, written.model, written.changed, Audit({}, kernels, 0, 0), len(self.smoothings))
        refused: dict[int, str] = {}
        while True:
            written = self.write(plan)
            names = {str(unit.node.name): unit.position for unit in written.placement.units}
            found = audit(written.model, names, self.target)
            if not found.unfused:
                beside = {names[name]: rule for name, rule in found.beside.items()}
                return Candidate(plan, written.model, written.changed, found, len(self.smoothings), refused, beside)
            left = {names[name]: rule for name, rule in found.unfused.items()}
            refused |= left
            plan = plan.without(left)

    def placement(self, plan: Plan) -> Placement:
        """Return what runs in integers under a plan."""
        return place(self.units, self._sizes, plan.static)

    def placed(self, plan: Plan) -> frozenset[int]:
        """Return the positions of the nodes of a plan that have what it takes beside them."""
        return frozenset(unit.position for unit in self.placement(plan).units) | plan.dynamic | plan.blocks

    def parameters(self, placement: Placement, method: RangeMethod) -> dict[str, Affine]:
        """Return the parameters of every stored tensor."""
        return self.calibration.parameters(placement, self.units, method) if self.calibration is not None else {}

    def fit_weights(self, positions: Collection[int]) -> bool:
        """Fit the weights of some units to what their layers read; whether there were any."""
        chosen = [unit for unit in self.units if unit.position in positions and unit.weight is not None]
        if not chosen or self.samples is None:
            return False
        found = fit_weights(self.model, chosen, self._store, self.samples)
        self._store.fitted = {**self._store.fitted, **found}
        for unit in self.units:  # their corrections were for other integers
            if unit.weight is not None and weight_key(unit) in found:
                self._store.bias_shift.pop(unit.position, None)
        return bool(found)

    def smooth(self, positions: Collection[int]) -> None:
        """Divide the channels that reach far of what some units read, where it is worth it."""
        if self.calibration is None or not self._store.per_channel:  # with one scale for all a row would cost the rest
            return
        known = {position for item in self.smoothings for position in item.readers}
        chosen = [unit for unit in self.units if unit.position in positions and unit.position not in known]
        found = smooth(self.model, chosen, self.calibration)
        if not found:
            return
        self.smoothings += found
        self.calibration = extended(self.calibration, self.model, [item.smooth for item in found])
        self._sizes = self.calibration.sizes()
        for position in {position for item in found for position in item.readers}:
            self._store.bias_shift.pop(position, None)
            self._store.forget(position)

    def write(self, plan: Plan) -> Written:
        """Make the model of a plan, whatever the runtime makes of it."""
        model = self.model.copy()
        placement = self.placement(plan)
        parameters = self.parameters(placement, plan.ranges)
        units = units_in(model, placement.units)
        chosen = [site for site in self.sites if site.position in plan.dynamic]
        merged = {site.position for site in into_integers(chosen, placement)}
        tables = sites_in(model, [site for site in chosen if site.position in merged])
        sites = sites_in(model, [site for site in chosen if site.position not in merged])
        blocks = sites_in(model, [site for site in self.sites if site.position in plan.blocks])
        tied = tied_tables(sites, blocks)
        sites = [site for site in sites if site not in tied]
        self._correct(placement)
        undo(model, self.smoothings, frozenset(plan.nodes))
        changed = quantize_dynamic(model, sites, self._store) if sites else 0
        changed += quantize_blocks(model, blocks, tied) if blocks else 0
        if placement.units:
            changed += insert(model, units, placement, parameters, self._store, self.target.convention)
        changed += merge_tables(model, tables) if tables else 0
        transpose_integers(model)
        share_integers(model)
        return Written(model, placement, changed)

    def switchboard(self, plan: Plan, error: OutputError) -> Switchboard:
        """Return the float model with a switch for every rounding of a plan.

        Raises:
            ModelError: ONNX Runtime does not take it.
        """
        model = self.model.copy()
        placement = self.placement(plan)
        self._correct(placement)
        parameters = self.parameters(placement, plan.ranges)
        twins = {
            Rounding(position): unit_twin(model, unit, self._store)
            for position, unit in units_in(model, placement.units).items()
            if unit.weight is not None
        }
        for positions, twin in ((plan.dynamic, self._site_twin), (plan.blocks, block_twin)):
            chosen = [site for site in self.sites if site.position in positions]
            twins.update({Rounding(site.position, at_run_time=True): twin(site) for site in sites_in(model, chosen)})
        rounded = tensor_roundings(model, placement)
        return Switchboard(model, twins, {item: parameters[item.tensor] for item in rounded}, error)

    def balance(
        self, plan: Plan, times: tuple[list[NodeTime], list[NodeTime]], harms: Mapping[Rounding, float]
    ) -> Balance:
        """Return the terms on which nodes of a plan are left float.

        Args:
            plan: The largest plan.
            times: Of the nodes of the float model and of the plan's; empty where they cannot be measured.
            harms: Error of each rounding.
        """
        placement = self.placement(plan)
        sites = [site for site in self.sites if site.position in plan.dynamic | plan.blocks]
        costs = measured_costs(placement.units, sites, self._sizes, *times)
        outside = read_outside(placement.units, outputs_of_scopes(self.model.graph))
        matrices = {site.position: site_size(site) for site in sites}
        saved = saved_bytes(placement.units, matrices, self.model.weight_bytes)
        return Balance(plan, placement, outside, costs, self._sizes, saved, harms)

    def share(self, positions: Collection[int], times: list[NodeTime]) -> float:
        """Return the part of the float model's time that some nodes take.

        Args:
            positions: Of units and sites.
            times: Of the nodes of the float model.
        """
        real = measured_costs(self.units, self.sites, self._sizes, times, ()).real
        return sum(real.get(position, 0.0) for position in positions) / max(sum(item.seconds for item in times), 1e-12)

    def tied(self) -> frozenset[int]:
        """Return the positions of the units that share their weight with other nodes."""
        weights = {unit.position: unit.weight for unit in self.units if unit.weight is not None}
        return frozenset(position for position, weight in weights.items() if len(weight.outputs) > 1)

    def refilled(self, plan: Plan, positions: Iterable[int], form: Fallback) -> Plan:
        """Return the plan with those of some float nodes in a form that can take it."""
        able = {site.position for site in self.sites if form == "dynamic" or site.node.op in MATRICES}
        return plan.adding((frozenset(positions) & able) - frozenset(plan.nodes), form)

    def saved_bytes(self, positions: Collection[int]) -> int:
        """Return the bytes that sites save when they store integers: three of four."""
        return sum(3 * site_size(site) for site in self.sites if site.position in positions)

    def harm_of(self, position: int, harms: Mapping[Rounding, float]) -> float:
        """Return the error that a node causes: of its weight, and of the tensors that it reads in integers."""
        read = {tensor.name for unit in self.units if unit.position == position for tensor in unit.inputs}
        return sum(
            harm for item, harm in harms.items() if (item.tensor in read if item.tensor else item.position == position)
        )

    def ranges_of(self, plan: Plan, tensor: str) -> dict[RangeMethod, Affine]:
        """Return the parameters of a tensor by every way of choosing a range."""
        assert self.calibration is not None
        placement, calibration = self.placement(plan), self.calibration
        found: dict[RangeMethod, Affine] = {}
        for method in METHODS:
            other = replace(calibration, chosen={**calibration.chosen, tensor: method})
            found[method] = other.parameters(placement, self.units, plan.ranges, only=tensor)[tensor]
        return found

    def choose_range(self, tensor: str, method: RangeMethod) -> None:
        """Choose the range of one tensor otherwise than all others'."""
        assert self.calibration is not None
        self.calibration.chosen[tensor] = method

    def _site_twin(self, site: DynamicSite) -> Twin:
        return site_twin(site, self._store)

    def _correct(self, placement: Placement) -> None:
        """Find the corrections of the biases that have a place in their unit."""
        for unit in placement.units:
            if unit.weight is None or unit.node.op == "MatMul" or unit.position in self._store.bias_shift:
                continue
            assert self.calibration is not None
            self._store.bias_shift[unit.position] = bias_shift(unit, self._store.weight(unit), self.calibration)
