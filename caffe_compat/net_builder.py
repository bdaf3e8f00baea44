"""Builds the layers of a net in order: blobs by name, parameters (shared ones too), loss weights, what gets a gradient."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from . import memory, trust
from .blob import Blob, ReshapedBlob
from .errors import NetError
from .graph import TRAIN, PlacedLayer
from .layers import LAYERS, Context, Layer
from .layers.base import format_shape

log = logging.getLogger(__name__)

#: Caffe's name for the top that a loss layer without tops gets.
AUTOMATIC = "(automatic)"


@dataclass
class Learnable:
    """A parameter blob that a solver updates: blob `index` of layer `layer_name`, which is its first owner if shared.

    `lr_mult` and `decay_mult` are ParamSpec's; `has_*` tell whether the file set them.
    """

    blob: Blob
    layer_name: str
    index: int
    lr_mult: float
    decay_mult: float
    has_lr_mult: bool
    has_decay_mult: bool


@dataclass
class Step:
    """One layer in the order of execution, with its blobs and what a backward pass does to it."""

    layer: Layer
    bottoms: list[Blob]
    tops: list[Blob]
    top_names: list[str]
    #: For each bottom, (step, top index) of the version that is read; in-place layers make new versions of a blob.
    sources: list[tuple[int, int]]
    bottom_need_backward: list[bool]
    need_backward: bool = False
    #: An Input layer: its tops hold what was written into them.
    given: bool = False
    #: For each top, its weight in the loss.
    loss_weights: list[float] = field(default_factory=list)
    #: Bottoms to detach: their gradient is not wanted although they have one.
    cut: list[int] = field(default_factory=list)
    #: Tops whose gradient is wanted although nothing before them needs one.
    leaves: list[int] = field(default_factory=list)
    #: The tops of the current pass, as this layer made them (None for one that is spent); None before the first.
    tensors: list[Tensor | None] | None = None
    #: The tops that this step is the last to read, as (step, top index, blob); None for a blob that gets a newer version.
    spent: list[tuple[Step, int, Blob | None]] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)


class NetBuilder:
    """Turns placed layers (filtered, Splits inserted) into steps. Raises `NetError` where the layers do not fit."""

    def __init__(self, context: Context, force_backward: bool) -> None:
        self.context = context
        self.steps: list[Step] = []
        self.blobs: dict[str, Blob] = {}
        self.params: dict[str, list[Blob]] = {}
        self.learnable: list[Learnable] = []
        self.inputs: list[str] = []
        self.losses: list[tuple[str, Blob, float]] = []
        self._force_backward = force_backward
        self._available: set[str] = set()
        self._latest: dict[str, tuple[int, int]] = {}
        self._owners: dict[str, Learnable] = {}
        self._bytes = 0
        self._need: dict[int, bool] = {}  # blob id -> needs backward

    def build(self, layers: Iterable[PlacedLayer]) -> None:
        """Adds all layers, then decides which of them a backward pass goes through."""
        for placed in layers:
            self._add_layer(placed)
        self._skip_what_leads_to_no_loss()
        if self._force_backward:
            self._force()
        self._mark_cuts_and_leaves()
        for name in self.outputs:
            log.info("This network produces output %s", name)

    @property
    def outputs(self) -> list[str]:
        """The blobs that no layer reads, sorted by name as in Caffe."""
        return sorted(self._available)

    # -- one layer --------------------------------------------------------------------------------------------------

    def _add_layer(self, placed: PlacedLayer) -> None:
        spec, where = placed.spec, placed.where
        if len(spec.propagate_down) not in (0, len(spec.bottom)):
            raise NetError(f"{where}: found {len(spec.propagate_down)} propagate_down for {len(spec.bottom)} bottoms; "
                           "give one for each bottom, or none", spec.name)
        cls = LAYERS.get(spec.type, where)
        trust.check_layer(spec, where)
        log.info("Creating Layer %s", spec.name)
        context = replace(self.context, training=spec.phase == TRAIN) if spec.HasField("phase") else self.context
        top_names = list(spec.top) or ([AUTOMATIC] if cls.is_loss else [])
        layer = cls(spec, context, where)
        bottoms, sources, wanted = self._take_bottoms(spec, where)
        tops, in_place = self._make_tops(spec, where, top_names)
        step = Step(layer, bottoms, tops, top_names, sources, wanted)
        shapes = [blob.shape for blob in bottoms]
        rates = [param.lr_mult for param in spec.param]
        layer.setup(shapes)
        step.shapes = [tuple(shape) for shape in layer.reshape(shapes)]
        self._check_tops(layer, top_names, step.shapes, in_place)
        for k, (blob, shape) in enumerate(zip(tops, step.shapes)):
            initial = layer.initial(k)
            blob.tensor = torch.zeros(shape, device=context.device) if initial is None else initial
        log.info("Setting up %s", spec.name)
        self._weigh_losses(step)
        self._bytes += sum(4 * blob.count for blob in tops)
        log.info("Memory required for data: %d", self._bytes)
        self._add_params(layer)
        # Caffe asks for the rates as the file has them, before BatchNorm sets its own to 0.
        rates = (rates + [1.0] * len(layer.blobs))[:len(layer.blobs)]
        step.need_backward = any(rates) or any(self._need[id(blob)] for blob in bottoms)
        for blob, kept in zip(tops, in_place):
            self._need[id(blob)] = step.need_backward or (kept and self._need[id(blob)])
        if spec.type == "Input":
            step.given = True
            self.inputs.extend(top_names)
        self._available.update(name for name in top_names if name != AUTOMATIC)
        self._latest.update({name: (len(self.steps), k) for k, name in enumerate(top_names)})
        self.steps.append(step)

    def _check_tops(self, layer: Layer, top_names: list[str], shapes: list[tuple[int, ...]], in_place: list[bool]) -> None:
        """Refuses what is too large before it is allocated, and what does not fit into the place of its bottom."""
        for name, shape, kept in zip(top_names, shapes, in_place):
            if wrong := memory.impossible(shape):
                raise layer.error(f'top blob "{name}": {wrong}', name)
            if kept and shape != self.blobs[name].shape:
                raise layer.error(f'cannot work in place: the bottom "{name}" is {format_shape(self.blobs[name].shape)}, the '
                                  f"top is {format_shape(shape)}; give the top a name of its own", name)
        params = sum(blob.count for blobs in (*self.params.values(), layer.blobs) for blob in blobs)
        if wrong := memory.too_much(self._bytes + 4 * (params + sum(prod(shape) for shape in shapes))):
            raise layer.error(wrong)

    def _take_bottoms(self, spec: Any, where: str) -> tuple[list[Blob], list[tuple[int, int]], list[bool]]:
        for name in spec.bottom:
            if name not in self._available:
                raise NetError(f'{where}: bottom blob "{name}" is not available here; available are: '
                               f"{', '.join(sorted(self._available)) or 'none'}", spec.name, name)
            log.info("%s <- %s", spec.name, name)
            self._available.remove(name)
        blobs = [self.blobs[name] for name in spec.bottom]
        wanted = list(spec.propagate_down) or [self._need[id(blob)] for blob in blobs]
        return blobs, [self._latest[name] for name in spec.bottom], wanted

    def _make_tops(self, spec: Any, where: str, names: list[str]) -> tuple[list[Blob], list[bool]]:
        tops, in_place = [], []
        for index, name in enumerate(names):
            kept = index < len(spec.bottom) and spec.bottom[index] == name
            if not kept and name in self.blobs and name != AUTOMATIC:
                producer = self.steps[self._latest[name][0]].layer.where if name in self._latest else "this layer"
                raise NetError(f'{where}: top blob "{name}" is already produced by {producer}; rename one', spec.name, name)
            log.info("%s -> %s%s", spec.name, name, " (in-place)" if kept else "")
            blob = self.blobs[name] if kept else Blob(torch.empty(0))
            self.blobs[name] = blob
            tops.append(blob)
            in_place.append(kept)
        return tops, in_place

    def _weigh_losses(self, step: Step) -> None:
        """Notes the tops with a loss weight; their diff is the weight, where every backward pass starts."""
        step.loss_weights = list(step.layer.spec.loss_weight) or ([1.0] if step.layer.is_loss else [])
        step.loss_weights += [0.0] * (len(step.tops) - len(step.loss_weights))
        for name, blob, weight in zip(step.top_names, step.tops, step.loss_weights):
            log.info("Top shape: %s", format_shape(blob.shape))
            if weight:
                blob.grad = torch.full_like(blob.tensor, weight)
                self.losses.append((name, blob, weight))
                log.info("    with loss weight %g", weight)

    # -- parameters -------------------------------------------------------------------------------------------------

    def _add_params(self, layer: Layer) -> None:
        """Enters a layer's parameters, the shared ones in the place of its own."""
        specs = list(layer.spec.param)
        if len(specs) > len(layer.blobs):
            raise layer.error(f"found {len(specs)} param for {len(layer.blobs)} parameter blobs; take some away")
        default = type(layer.spec).DESCRIPTOR.fields_by_name["param"].message_type._concrete_class()
        specs += [default] * (len(layer.blobs) - len(specs))
        for index, (blob, spec) in enumerate(zip(layer.blobs, specs)):
            learnable = Learnable(blob, layer.name, index, spec.lr_mult, spec.decay_mult,
                                  spec.HasField("lr_mult"), spec.HasField("decay_mult"))
            if spec.name in self._owners:
                self._share(layer, self._owners[spec.name], learnable, spec.name, permissive=spec.share_mode == 1)
                continue
            self.learnable.append(learnable)
            if spec.name:
                self._owners[spec.name] = learnable
            if layer.learns and (spec.lr_mult != 0 or self._force_backward):
                blob.tensor.requires_grad_(True)
        if layer.blobs:
            self.params[layer.name] = layer.blobs

    def _share(self, layer: Layer, owner: Learnable, own: Learnable, name: str, permissive: bool) -> None:
        """Puts the owner's blob in the place of this layer's own; multipliers set in both places must agree."""
        ours, theirs = own.blob.shape, owner.blob.shape
        if (own.blob.count != owner.blob.count) if permissive else (ours != theirs):
            raise layer.error(f'cannot share param "{name}" owned by layer {owner.layer_name}: its shape is '
                              f"{format_shape(theirs)}, this layer's is {format_shape(ours)}")
        for multiplier in ("lr_mult", "decay_mult"):
            if getattr(own, f"has_{multiplier}"):
                value, known = getattr(own, multiplier), getattr(owner, multiplier)
                if getattr(owner, f"has_{multiplier}") and value != known:
                    raise layer.error(f'shared param "{name}" has {multiplier} {value:g} here and {known:g} in layer '
                                      f"{owner.layer_name}; make them equal")
                setattr(owner, multiplier, value)
                setattr(owner, f"has_{multiplier}", True)
        layer.blobs[own.index] = owner.blob if ours == theirs else ReshapedBlob(owner.blob, ours)

    # -- what gets a gradient ---------------------------------------------------------------------------------------

    def _skip_what_leads_to_no_loss(self) -> None:
        """Caffe's backward walk over the net: layers that do not contribute to a loss, or whose tops all lie under a
        cut, are left out of the backward pass."""
        under_loss: set[int] = set()
        skipped: set[int] = set()
        for step in reversed(self.steps):
            contributes = any(step.loss_weights) or any(id(blob) in under_loss for blob in step.tops)
            if step.need_backward and all(id(blob) in skipped for blob in step.tops):
                step.need_backward = False
                step.bottom_need_backward = [False] * len(step.bottoms)
            if not contributes:
                step.need_backward = False
                step.bottom_need_backward = [False] * len(step.bottoms)
            for blob, wanted in zip(step.bottoms, step.bottom_need_backward):
                if contributes:
                    under_loss.add(id(blob))
                if not wanted:
                    skipped.add(id(blob))
            log.info("%s %s backward computation.", step.layer.name,
                     "needs" if step.need_backward else "does not need")

    def _force(self) -> None:
        """force_backward: every layer, every bottom that can have a gradient."""
        for step in self.steps:
            step.need_backward = True
            step.bottom_need_backward = [wanted or k not in step.layer.undifferentiable
                                         for k, wanted in enumerate(step.bottom_need_backward)]

    def _mark_cuts_and_leaves(self) -> None:
        for step in self.steps:
            for k, (position, top) in enumerate(step.sources):
                wanted = step.need_backward and step.bottom_need_backward[k] and k not in step.layer.undifferentiable
                if not wanted:
                    step.cut.append(k)
                elif top not in self.steps[position].leaves:
                    self.steps[position].leaves.append(top)
