"""Muon for the matrices of hidden layers, and AdamW for everything else, in one object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ..backend import ADAMW, AMSGRADW, MUON, MUON_APPLY, Rule, Sources, Stage
from ..distributed.owners import Owners
from ..errors import SpecError
from ..gradients.plans import Part, PlanSet
from ..memory.batches import matrix_of, split_block
from ..memory.spec import VarSpec
from ..memory.streams import FROZEN_ELEMENTS, Stream
from ..variables.registry import HasRegistry, Registry
from ..variables.selectors import Selector, names
from ..variables.variable import Variable
from .base import Optimizer
from .checks import LENGTHS, check_at_least, check_betas, check_kinds
from .formats import StateFormat
from .matrices import MatrixShape, MatrixStep
from .membership import by_rows
from .muon_choice import HiddenMatrices, not_hidden
from .muon_settings import Adjustment, adjustment, check_adjustment
from .newton_schulz import KELLER, CoefficientSet, newton_schulz_of
from .owned import owners_for
from .states import origin_of

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
NUMBERS = ("lr", "weight_decay", "momentum", "nesterov", "eps", "ns_steps", "betas", "amsgrad", "maximize")
Split = Mapping[str, int | Sequence[int]]


class Muon(Optimizer):
    """Muon (Jordan et al. 2024): momentum, made orthogonal by Newton-Schulz iterations; AdamW for what is no matrix.

    `Muon(params, ...)` steps matrices, and is torch.optim.Muon. `Muon(store, ...)` steps all of a store: the matrices
    that `muon` selects by Muon, the rest by AdamW with the numbers of `rest`; `describe()` says who gets what. A param
    group says by its entry "rule", "Muon" or "AdamW", who steps it. Matrices of one shape are one batch of products, in
    the place where they lie: the store lays them side by side, so that nothing is stacked or copied. Other conventions
    than torch's: `muon_settings`.

    Args:
        params: As for `Optimizer`.
        lr: Learning rate, before `adjust_lr_fn`.
        weight_decay: Decoupled, with the learning rate as it is.
        momentum: Of the buffer.
        nesterov: Look ahead by one momentum.
        ns_coefficients: Three numbers, three for each iteration, or a name: "keller", "quintic", "polar", "deepseekv4".
        eps: Least norm of a matrix.
        ns_steps: Iterations; with None, as many as the set of coefficients has.
        adjust_lr_fn: Factor of the learning rate: "original" (or None) sqrt(max(1, rows / columns)), "match_rms_adamw"
            0.2 sqrt(max(rows, columns)), with which AdamW's learning rates fit, "spectral_norm" sqrt(out / in), "none".
        muon: Of a store, which variables are Muon's; by default the matrices but for embeddings, whatever is tied to
            one, the last Linear, and what is named as a norm, bias, gate, scale or head.
        rest: Numbers of AdamW for all others: lr (1e-3; Muon's with "match_rms_adamw"), betas, eps, weight_decay,
            amsgrad.
        split: By name pattern: into how many equal parts (heads; 3 for fused query, key and value), or of which sizes,
            the outputs of a matrix are split, each of which is a matrix of its own.
        in_out: Name patterns of matrices that are stored [in, out], as Conv1D of transformers does.
        sum_momentum: The buffer is a sum, momentum M + g, and no average: 1 / (1 - momentum) times as large.
        add_eps: Add `eps` to the norm.
        cautious_decay: Decay only what the step moves towards zero.
        convolutions: Take tensors of more axes as matrices [out, all others].
        each_shard: Where `fully_shard` divided the matrices, make each rank's rows orthogonal for themselves: without a
            message, but another optimizer, whose steps depend on the mesh. By default one rank puts a matrix together.
        store, max_norm, skip_nonfinite, state_dtype, state_format, stats: As for `Optimizer`; the norm is that of all
            groups.

    Raises:
        ValueError: a number out of range, or a parameter of Muon's that is no matrix.

    Example:
        >>> fv.optim.Muon(store, lr=0.02, rest=dict(lr=3e-4, betas=(0.9, 0.95)), split={"*.qkv.weight": 3})
    """

    several = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: CoefficientSet | Sequence[float] | Sequence[Sequence[float]] = KELLER,
        eps: float = 1e-7,
        ns_steps: int | None = 5,
        adjust_lr_fn: Adjustment | None = None,
        *,
        muon: Selector = None,
        rest: Mapping[str, Any] | None = None,
        split: Split | None = None,
        in_out: str | Iterable[str] = (),
        sum_momentum: bool = False,
        add_eps: bool = False,
        cautious_decay: bool = False,
        convolutions: bool = False,
        each_shard: bool = False,
        store: HasRegistry | None = None,
        max_norm: float | None = None,
        skip_nonfinite: bool = False,
        state_dtype: torch.dtype | None = None,
        state_format: StateFormat = None,
        stats: bool | int = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        self._options = {
            "split": _as_pairs(split),
            "in_out": ((in_out,) if isinstance(in_out, str) else tuple(in_out)) or None,
            "sum_momentum": sum_momentum,
            "add_eps": add_eps,
            "cautious_decay": cautious_decay,
            "convolutions": convolutions,
            "each_shard": each_shard,
        }
        whole = isinstance(params, HasRegistry)
        if not whole and (muon is not None or rest is not None):
            raise ValueError("muon= and rest= are for a whole store: Muon(store, muon=..., rest=...)")
        if whole:
            store = params
            lr_of_rest = {"lr": lr} if adjust_lr_fn == "match_rms_adamw" else {}
            unknown = [name for name in rest or {} if name not in REST]
            if unknown:
                raise ValueError(f"rest has no {unknown[0]!r}; it may give {', '.join(REST)}")
            params = [
                {"params": HiddenMatrices() if muon is None else muon, "rule": "Muon"},
                {"params": "*", "rule": "AdamW", **lr_of_rest, **(rest or {})},
            ]
        super().__init__(
            params,
            defaults,
            store=store,
            max_norm=max_norm,
            skip_nonfinite=skip_nonfinite,
            state_dtype=state_dtype,
            state_format=state_format,
            stats=stats,
        )
        self._arrange()

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
                param_group["split"] = _as_pairs(param_group["split"])
        known = self.defaults
        try:
            # What torch.optim fills up with.
            self.defaults = self.defaults_of(param_group)
            super().add_param_group(param_group)
        finally:
            self.defaults = known

    def number_names(self, defaults: Mapping[str, Any]) -> Iterable[str]:
        return [name for name in NUMBERS if name in defaults]

    optional = frozenset({"ns_steps"})

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
        _schulz(numbers)

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

    def _arrange(self) -> None:
        """Lays the matrices side by side."""
        pairs = by_rows(self.membership.groups)
        chosen = [(v, self.param_groups[number]) for v, number in pairs]
        matrices = [v for v, group in chosen if group.get("rule") != "AdamW"]
        for variable, group in chosen:
            if group.get("rule") != "AdamW":
                shape_of(variable, group)
        self.registry.lay_side_by_side(matrices)

    def _make_plans(self) -> PlanSet:
        self._arrange()
        self._steps = {}
        return super()._make_plans()

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

    def _step_of(self, plans: PlanSet, part: Part) -> MatrixStep:
        made = self._steps.get(id(part))
        if made is None:
            variables = [plans.variables[k] for k in part.order]
            shapes = [shape_of(v, self.membership.group_of[v.id])[0] for v in variables]
            (momentum,) = self.states.streams(part.region, MUON.states)
            owners, layout = self._owners_of(variables, shapes, momentum), self.registry.layout
            indices = [v.index for v in variables]
            made = self._steps[id(part)] = MatrixStep(part, indices, shapes, layout, momentum, owners)
        return made

    def _owners_of(
        self, variables: Sequence[Variable], shapes: Sequence[MatrixShape], momentum: Stream
    ) -> Owners | None:
        by_themselves = {bool(self.membership.group_of[v.id].get("each_shard")) for v in variables}
        if len(by_themselves) > 1:
            raise ValueError(
                "each_shard is set in some of Muon's param groups and not in others; set it in all or none"
            )
        if by_themselves == {True}:
            if self.registry.group is not None:
                raise ValueError(
                    "each_shard=True is for modules that fully_shard divided; ranks of mesh= have ranges of a buffer, "
                    "which are no matrices: leave it out"
                )
            return None
        return owners_for(self.registry, variables, shapes, momentum)

    # Stepping ---------------------------------------------------------------------------------------------------------

    def launch_part(
        self,
        plans: PlanSet,
        part: Part,
        source: Sources,
        norm: Tensor,
        scaling: Mapping[str, Tensor | None],
        stage: Stage = "both",
    ) -> None:
        if part.kind is not MUON:
            super().launch_part(plans, part, source, norm, scaling, stage)
            return
        (momentum,) = self.states.streams(part.region, MUON.states)
        frozen = self.registry.streams.find(FROZEN_ELEMENTS, part.region)
        rule = self.with_average(MUON_APPLY)
        states = self.states.streams(part.region, (*rule.states, *MUON.states))[: len(rule.states)]
        values = plans.values(part)
        last: dict[str, Any] = {
            "rule": rule,
            "states": [held.stored for held in states],
            "steps": self.states.steps,
            **origin_of(states),
            "own": self.states.scalars(rule.own),
            "keys": self._keys_for(rule, values, states),
        }
        common = {
            "norm": norm,
            "max_norm": self.max_norm,
            "skip": self.skip_nonfinite,
            "skipped": self.states.skipped,
            "check": self.check_changed,
        }
        step, groups = self._step_of(plans, part), self.groups_of(part)
        step.launch(source, momentum, values, groups, frozen, common, scaling, last, self.observed()[::-1])

    def upload_part(self, part: Part) -> None:
        if part.kind is not MUON:
            super().upload_part(part)
            return
        assert self._plans is not None
        rule = self.with_average(MUON_APPLY)
        self._step_of(self._plans, part).upload(rule, self.groups_of(part), self.max_norm)

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


def shape_of(variable: Variable, group: Mapping[str, Any]) -> tuple[MatrixShape, float]:
    """The matrices in a variable, and the factor of its learning rate.

    Raises:
        ValueError: it is no matrix, or cannot be split as the group says.
    """
    spec = spec_of(variable, bool(group.get("each_shard", False)))
    shape = spec.shape
    if len(shape) != 2 and (len(shape) < 3 or not group.get("convolutions", False)):
        raise ValueError(
            f"Muon only supports 2D parameters whereas we found a parameter with size: {torch.Size(shape)}: "
            f'{variable.name!r}. Put it into a group with "rule": "AdamW", give Muon the whole store, or, for a '
            "convolution, pass convolutions=True"
        )
    in_out = any(names(name, pattern) for pattern in group.get("in_out") or () for name in variable.names)
    sizes: Any = next((n for p, n in group.get("split") or () if any(names(name, p) for name in variable.names)), 1)
    axis = int(in_out)
    try:
        block = matrix_of(spec)
        if isinstance(sizes, Integral):
            if sizes < 1 or block.shape[axis] % sizes:
                raise SpecError(f"{block.shape[axis]} outputs are not {sizes} equal parts")
            sizes = [block.shape[axis] // int(sizes)] * int(sizes)
        blocks = split_block(block, sizes, axis) if min(block.shape) else [block]
    except SpecError as error:
        raise ValueError(f"Muon cannot step {variable.name!r} of shape {shape}: {error}") from None

    def scale(rows: int, columns: int) -> float:
        out, into = (columns, rows) if in_out else (rows, columns)
        sides = (out, into) if len(shape) == 2 else shape[-2:]
        return adjustment(group["adjust_lr_fn"], max(out, 1), max(into, 1), (max(sides[0], 1), max(sides[1], 1)))

    scales = [scale(*one.shape) for one in blocks]
    factors = tuple(one / scales[0] for one in scales)
    return MatrixShape(tuple(blocks), factors, _schulz(group)), scales[0]


def spec_of(variable: Variable, each_shard: bool) -> VarSpec:
    """Of all of a variable, of which this rank may have a shard; or of the shard."""
    whole = variable.whole
    if each_shard or whole is variable.param:
        return variable.spec
    return replace(variable.spec, shape=tuple(whole.shape), stride=tuple(whole.stride()))


def _schulz(group: Mapping[str, Any]) -> Any:
    check_kinds(group, [name for name in NUMBERS if name in group], LENGTHS, False, Muon.optional)
    return newton_schulz_of(
        group["ns_coefficients"], group["ns_steps"], float(group["eps"]), bool(group.get("add_eps", False))
    )


def _as_pairs(split: Any) -> tuple[tuple[str, Any], ...] | None:
    """A split as a param group keeps it, which can be compared and saved; None for none."""
    pairs = split.items() if isinstance(split, Mapping) else split or ()
    return tuple((str(p), int(n) if isinstance(n, Integral) else tuple(int(m) for m in n)) for p, n in pairs) or None
