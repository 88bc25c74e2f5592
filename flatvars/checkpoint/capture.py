"""Capturing: how a store becomes an image. Nothing is copied, and nothing waits for the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..gradients.attached import gradients_of
from ..gradients.cycle import PENDING, GradientSnapshot
from ..memory.streams import FROZEN_ELEMENTS, GRADS, VALUES, Stream
from ..modules.buffers import warn_left_out
from ..optim.record import OptimizerRecord
from ..variables.registry import Registry
from ..variables.selectors import Selector
from .header import CODE_OF
from .image import Image, Plane
from .plain import encode
from .random_state import capture_random
from .records import Catalog, Record, catalog_of
from .training import FILE, LOOSE, OptimizerImage, Training, as_list, check_optimizer, label_of


def capture(
    registry: Registry,
    optimizer: Any = None,
    schedulers: Any = None,
    rng: bool | Mapping[str, torch.Generator] = False,
    select: Selector = None,
) -> Image:
    """Everything there is to save, in place.

    Raises:
        CheckpointError: something that no file can hold; a selection with training state, or of nothing.
        UnknownNameError: a pattern of the selection fits nothing.
        AliasError: a parameter no longer lies in the store, so that stale values would be saved.
    """
    registry.settle()
    registry.check_aliases()
    warn_left_out(registry)
    catalog = catalog_of(registry)
    trains = bool(as_list(optimizer) or as_list(schedulers) or rng)
    if select is not None and trains:
        raise CheckpointError("select= saves some variables, training resumes with all; leave one of them out")
    if select is not None:
        chosen = {variable.name for variable in registry.matching(select)}
        catalog = Catalog([record for record in catalog.records if record.name in chosen])
        if not catalog.records:
            raise CheckpointError(f"select={select!r} chooses none of the {len(registry.variables)} variables")
    image = _image_of(registry, catalog)
    if trains:
        _capture_training(registry, image, optimizer, schedulers, rng)
    return image


def _image_of(registry: Registry, catalog: Catalog) -> Image:
    """The values of some variables of a registry, in place; and its element masks, where there are any.

    Raises:
        CheckpointError: a dtype that no file can hold.
    """
    registry.check_whole()
    for region in registry.layout.regions:
        if region.dtype not in CODE_OF:
            raise CheckpointError(f"the store holds {region.dtype} variables, which safetensors files cannot hold")
    image = Image(registry.layout, catalog, [])
    image.add(registry, "", VALUES, lambda records, _: records)
    image.add(registry, FROZEN_ELEMENTS, FROZEN_ELEMENTS, _masked)
    return image


def _masked(records: list[Record], mask: Stream) -> list[Record]:
    """Variables with an element that is not trained."""
    return [r for r in records if r.span.spec.has_room and bool(mask.flat(r.span).any())]


def _capture_training(registry: Registry, image: Image, optimizers: Any, schedulers: Any, rng: Any) -> None:
    """Adds to an image what training needs; nothing is copied and nothing waits for the device.

    Raises:
        CheckpointError: an optimizer of another store or of torch, a scheduler whose state is no data, a sparse
            gradient.
    """
    owners = [_capture(registry, image, number, one) for number, one in enumerate(as_list(optimizers))]
    scheduled = as_list(schedulers)
    states = [{"class": type(one).__name__, "state": encode(one.state_dict(), type(one).__name__)} for one in scheduled]
    gradients = _capture_gradients(registry, image) if owners else None
    random, loose = capture_random(registry.device, rng) if rng else (None, {})
    image.loose.update(loose)
    names, mode = image.catalog.names, registry.gradients.mode
    image.training = Training(names, owners, scheduled, states, mode, gradients, random, registry.seed)


def _capture(registry: Registry, image: Image, number: int, optimizer: Any) -> OptimizerImage:
    check_optimizer(registry, optimizer)
    record: OptimizerRecord = optimizer.capture()
    groups = [
        dataclasses.replace(group, hyper=_hyper(group.hyper), variables=list(group.variables))
        for group in record.groups
    ]
    loose = _capture_loose(image, number, record)
    one = OptimizerImage(optimizer, dataclasses.replace(record, groups=groups), loose)
    for (state, region), stream in record.streams.items():
        image.planes.append(
            Plane(label_of(state, number), f"optimizer {number}: {state}", region, stream, one.choose(state))
        )
    return one


def _capture_loose(image: Image, number: int, record: OptimizerRecord) -> dict[str, Any]:
    """State that lies in no stream, as that of a variable without room: large tensors in the file, the rest as JSON.

    Raises:
        CheckpointError: something that no file can hold.
    """
    found: dict[str, Any] = {}
    for key, content in record.loose.items():
        name = image.catalog.names[key]
        about = found[name] = {}
        for state, value in content.items():
            where = f"the optimizer's state {state!r} of {name!r}"
            if not isinstance(state, str):
                raise CheckpointError(f"{where} has no text for a name; keep it yourself")
            if isinstance(value, Tensor) and (value.layout != torch.strided or value.dtype not in CODE_OF):
                raise CheckpointError(f"{where} is {value.dtype} and {value.layout}, which files cannot hold")
            if isinstance(value, Tensor) and value.numel() > 1:
                label = f"{LOOSE}/{number}/{state}/{name}"
                image.loose[label], about[state] = value.detach(), {FILE: label}
            else:
                about[state] = encode(value, where)
    return found


def _hyper(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group's numbers; tensors become numbers when they are written."""
    return {
        key: value.detach() if isinstance(value, Tensor) else encode(value, f"hyper-parameter {key!r}")
        for key, value in group.items()
        if key != "param_names"
    }


def _capture_gradients(registry: Registry, image: Image) -> GradientSnapshot:
    found = gradients_of(registry).snapshot()
    for variable in found.pending:
        grad = variable.param.grad
        assert grad is not None
        if grad.layout != torch.strided:
            raise CheckpointError(
                f"the pending gradient of {variable.name!r} is {grad.layout}, which files cannot hold; call "
                "store.accumulate() before saving in the middle of a cycle, or zero_grad() after the step"
            )
        image.loose[f"{PENDING}/{variable.name}"] = grad.detach()
    touched = {v.id for v in found.open}
    if touched:
        image.add(registry, GRADS, GRADS, lambda records, _: [r for r in records if r.id in touched])
    return found
