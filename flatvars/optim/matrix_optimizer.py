"""Optimizers that step matrices by orthogonal directions, and by AdamW what is none, in one object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..backend import ADAMW, AMSGRADW, MUON, MUON_APPLY, MUON_DIRECTION, Again, Rule, Sources, Stage
from ..distributed.owners import Owners
from ..gradients.plans import Part, PlanSet
from ..memory.streams import FROZEN_ELEMENTS, Stream
from ..variables.registry import HasRegistry, Registry
from ..variables.selectors import Selector
from ..variables.variable import Variable
from .base import Optimizer
from .checks import check_at_least, check_betas
from .matrices import MatrixShape, MatrixStep
from .matrix_shapes import NUMBERS, OPTIONAL, as_pairs, schulz_of, shape_of
from .membership import by_rows
from .muon_choice import HiddenMatrices, not_hidden
from .muon_settings import check_adjustment
from .owned import owners_for
from .row_moments import Outputs
from .scaling import moves_of

REST: Mapping[str, Any] = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 1e-2,
    "amsgrad": False,
    "maximize": False,
}
"""Entries of a param group that AdamW steps, with torch.optim.AdamW's defaults."""

RULES = ("Muon", "AdamW")
Split = Mapping[str, int | Sequence[int]]


class MatrixOptimizer(Optimizer):
    """What `Muon` and `NorMuon` have in common.

    Args:
        params: As for `Muon`.
        defaults: Numbers of param groups of matrices.
        options: Entries of theirs that say which matrices there are in a variable; `split` and `in_out` among them.
        muon, rest: As for `Muon`.
        common: `store` and what else `Optimizer` takes.
    """

    several = True
    optional = OPTIONAL

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        options: Mapping[str, Any],
        muon: Selector,
        rest: Mapping[str, Any] | None,
        store: HasRegistry | None,
        **common: Any,
    ) -> None:
        in_out = options["in_out"]
        in_out = ((in_out,) if isinstance(in_out, str) else tuple(in_out)) or None
        self._options = {**options, "split": as_pairs(options["split"]), "in_out": in_out}
        whole = isinstance(params, HasRegistry)
        if not whole and (muon is not None or rest is not None):
            raise ValueError("muon= and rest= are for a whole store: Muon(store, muon=..., rest=...)")
        if whole:
            store = params
            lr_of_rest = {"lr": defaults["lr"]} if defaults["adjust_lr_fn"] == "match_rms_adamw" else {}
            unknown = [name for name in rest or {} if name not in REST]
            if unknown:
                raise ValueError(f"rest has no {unknown[0]!r}; it may give {', '.join(REST)}")
            params = [
                {"params": HiddenMatrices() if muon is None else muon, "rule": "Muon"},
                {"params": "*", "rule": "AdamW", **lr_of_rest, **(rest or {})},
            ]
        super().__init__(params, defaults, store=store, **common)

    def _attach(self, registry: Registry) -> None:
        super()._attach(registry)
        self.states.from_start = frozenset(MUON.states)
        self._rows: list[tuple[int, float]] = []  # of Muon's launches: number of the param group, scale
        self._steps: dict[int, MatrixStep] = {}

    # Groups -----------------------------------------------------------------------------------------------------------

    def defaults_of(self, group: Mapping[str, Any]) -> dict[str, Any]:
        return dict(REST) if group.get("rule") == "AdamW" else self.defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch.optim's; a group's "rule" says who steps it, Muon if it does not."""
        if isinstance(param_group, dict):
            param_group = {"rule": "Muon", **param_group}
            if param_group["rule"] == "Muon":
                param_group = {**self._options, **param_group}
                param_group["split"] = as_pairs(param_group["split"])
        known = self.defaults
        try:
            # What torch.optim fills up with.
            self.defaults = self.defaults_of(param_group)
            super().add_param_group(param_group)
        finally:
            self.defaults = known

    def number_names(self, defaults: Mapping[str, Any]) -> Iterable[str]:
        return [name for name in NUMBERS if name in defaults]

    def check_numbers(self, numbers: Mapping[str, Any]) -> None:
        rule = numbers.get("rule", "Muon")
        if rule not in RULES:
            raise ValueError(f'a param group has the rule {rule!r}; it may be "Muon" or "AdamW"')
        check_at_least(0.0, **{name: numbers[name] for name in ("lr", "weight_decay", "eps")})
        if rule == "AdamW":
            check_betas(numbers["betas"])
            return
        check_at_least(0.0, momentum=numbers["momentum"])
        check_adjustment(numbers["adjust_lr_fn"])
        schulz_of(numbers)

    # Rules ------------------------------------------------------------------------------------------------------------

    def rule(self) -> Rule:
        """Muon's; see `rule_of`."""
        return MUON

    def rule_of(self, group: Mapping[str, Any]) -> Rule:
        if group.get("rule") != "AdamW":
            return MUON
        amsgrad = group["amsgrad"] or any(other.get("amsgrad") for other in self.param_groups)
        return AMSGRADW if amsgrad else ADAMW

    def state_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        if group.get("rule") != "AdamW":
            return MUON.states
        return (AMSGRADW if group["amsgrad"] else ADAMW).states

    # Plans ------------------------------------------------------------------------------------------------------------

    def arrange(self) -> None:
        """Lays the matrices side by side."""
        pairs = by_rows(self.membership.groups)
        chosen = [(v, self.param_groups[number]) for v, number in pairs]
        matrices = [v for v, group in chosen if group.get("rule") != "AdamW"]
        for variable, group in chosen:
            if group.get("rule") != "AdamW":
                shape_of(variable, group)
        self.registry.lay_side_by_side(matrices)

    def _make_plans(self) -> PlanSet:
        self._steps = {}
        return super()._make_plans()

    def _plans_depend_on(self) -> Any:
        names = ("ns_coefficients", "ns_steps", "eps", "adjust_lr_fn", *self._options)
        return super()._plans_depend_on(), [[group.get(name) for name in names] for group in self.param_groups]

    def rows_of(self, members: Sequence[tuple[Variable, int]]) -> list[int]:
        rows = super().rows_of(members)
        self._rows = []
        for i, (variable, number) in enumerate(members):
            if self._kinds[number] is MUON:
                row = number, shape_of(variable, self.param_groups[number])[1]
                if row not in self._rows:
                    self._rows.append(row)
                rows[i] = self._rows.index(row)
        return rows

    def groups_of(self, part: Part) -> list[dict[str, Any]]:
        if part.kind is not MUON:
            return super().groups_of(part)
        return [{**self.param_groups[number], "scale": scale} for number, scale in self._rows]

    def matrix_shapes(self, variables: Sequence[Variable]) -> list[MatrixShape]:
        """What the products need to know of each."""
        return [shape_of(v, self.membership.group_of[v.id])[0] for v in variables]

    def _step_of(self, plans: PlanSet, part: Part) -> MatrixStep:
        made = self._steps.get(id(part))
        if made is None:
            variables = [plans.variables[k] for k in part.order]
            (momentum,) = self.states.streams(part.region, MUON.states)
            shapes = self.matrix_shapes(variables)
            owners, layout = self._owners_of(variables, shapes, momentum), self.registry.layout
            made = self._steps[id(part)] = MatrixStep(part, variables, shapes, layout, momentum, owners)
        return made

    def _owners_of(
        self, variables: Sequence[Variable], shapes: Sequence[MatrixShape], momentum: Stream
    ) -> Owners | None:
        by_themselves = {bool(self.membership.group_of[v.id].get("each_shard")) for v in variables}
        if len(by_themselves) > 1:
            raise ValueError("each_shard is set in some param groups of matrices and not in others: in all or none")
        if by_themselves == {True}:
            if self.registry.group is not None:
                raise ValueError(
                    "each_shard=True is for modules that fully_shard divided; ranks of mesh= have ranges of a buffer, "
                    "which are no matrices: leave it out"
                )
            return None
        kind, divisible = type(self).__name__, "each_shard" in self._options
        return owners_for(self.registry, variables, shapes, momentum, kind, divisible)

    # Stepping ---------------------------------------------------------------------------------------------------------

    def step_part(
        self, plans: PlanSet, part: Part, source: Sources, arguments: dict[str, Any], stage: Stage = "both"
    ) -> Again | None:
        if part.kind is not MUON:
            return super().step_part(plans, part, source, arguments, stage)
        step = self._step_of(plans, part)
        if step.moments is not None:
            step.moments.bind(source.touched, lambda variable: self.entries[variable.param])
        frozen = self.registry.streams.find(FROZEN_ELEMENTS, part.region)
        made = step.momentum, [step.directions]
        step.write(source, MUON_DIRECTION, *made, arguments, self.observed()[1], frozen)
        moves = written = None
        if step.moments is not None:
            # Of ranks that have parts, each works on what it has or owns, whether there is a gradient or not.
            known = not source.viewed and step.owners is None
            moves, written = moves_of(arguments), None if known else part.plan.written(source)
        step.orthogonalize(source.touched, self.moment_weight, moves, written)
        step.move(source, arguments)
        return None

    def moment_weight(self, outputs: Outputs) -> float:
        """Of new squares in the second moments of outputs."""
        return 1.0 - float(self.param_groups[outputs.group]["beta2"])

    def applied_rule(self, part: Part) -> Rule:
        return self.with_average(MUON_APPLY) if part.kind is MUON else super().applied_rule(part)

    def streams_of(self, part: Part, rule: Rule) -> list[Stream]:
        if part.kind is not MUON:
            return super().streams_of(part, rule)
        # Over the range of the momentum, which that of an average is to begin with.
        return self.states.streams(part.region, (*rule.states, *MUON.states))[: len(rule.states)]

    def upload_part(self, part: Part) -> None:
        if part.kind is not MUON:
            super().upload_part(part)
            return
        assert self._plans is not None
        numbers = {"max_norm": self.max_norm, "check": self.check_changed}
        step = self._step_of(self._plans, part)
        step.upload(MUON_DIRECTION, self.applied_rule(part), self.groups_of(part), **numbers)

    # State --------------------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: Mapping[str, Any], *, buffers: str | None = None) -> None:
        """As `Optimizer`'s; torch.optim.Muon's loads, and this optimizer's loads there, if all is Muon's.

        Args:
            buffers: What the momentum buffers of the state dict are: "sum" (momentum M + g: Moonshot's, Dion's) or
                "average" (torch's, Keller Jordan's); they are scaled to what this optimizer keeps. If not given, they
                are what the param group says by its "sum_momentum", or else as this optimizer's.

        Raises:
            ValueError: `buffers` is neither, or as for `Optimizer`; nothing has changed then.
        """
        if buffers not in (None, "sum", "average"):
            raise ValueError(f'buffers={buffers!r}: give "sum" or "average", which the loaded momentum buffers are')
        super().load_state_dict(state_dict if buffers is None else self._converted(state_dict, buffers == "sum"))

    def _converted(self, state_dict: Mapping[str, Any], summed: bool) -> dict[str, Any]:
        state, groups = dict(state_dict["state"]), []
        for mine, saved in zip(self.param_groups, state_dict["param_groups"], strict=False):
            keep = 1.0 - float(saved.get("momentum", mine.get("momentum", 0.0)))
            wanted = bool(mine.get("sum_momentum", False))
            factor = 1.0 if summed == wanted else keep if summed else 1.0 / keep
            for index in saved["params"]:
                entry = state.get(index)
                if entry and isinstance(entry.get("momentum_buffer"), Tensor):
                    state[index] = {**entry, "momentum_buffer": entry["momentum_buffer"] * factor}
            groups.append({key: value for key, value in saved.items() if key != "sum_momentum"})
        return {**state_dict, "state": state, "param_groups": [*groups, *state_dict["param_groups"][len(groups) :]]}

    def describe(self) -> str:
        """Who steps what, in words: the variables of each param group, and why one is not Muon's."""
        self.follow()
        lines = []
        for number, (group, variables) in enumerate(zip(self.param_groups, self.membership.groups, strict=True)):
            rule, count = group.get("rule", "Muon"), sum(v.spec.numel for v in variables)
            about = f"lr {float(group['lr']):g}, {len(variables)} variables, {count:,} numbers"
            lines.append(f"group {number}: {rule}, {about}")
            for variable in variables:
                about = f"{tuple(variable.whole.shape)}"
                if rule == "Muon":
                    shape, scale = shape_of(variable, group)
                    parts = f", {len(shape.blocks)} matrices" if len(shape.blocks) > 1 else ""
                    about += f", lr x {scale:.4g}{parts}"
                elif reason := not_hidden(variable):
                    about += f", {reason}"
                lines.append(f"  {variable.name}  {about}")
        return "\n".join(lines)
