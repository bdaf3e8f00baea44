"""What every layer is: `Layer`, and the `@layer` decorator that registers a type in the place where it is defined.

A layer type is a class with up to three methods, called in this order:

    setup(shapes)     once, when the net is built: checks its settings, makes its parameter blobs with `add_param`;
    reshape(shapes)   bottom shapes -> top shapes, plain arithmetic (the default: every top is shaped like bottom 0);
    forward(*bottoms) bottom tensors -> top tensors, in differentiable torch operations on any device.

The backward pass is torch's; a layer whose gradient is not the derivative of its forward pass says so with a
`torch.autograd.Function`. The blob counts and loss weights are checked here, for all types alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import fillers, memory, proto
from ..blob import Blob
from ..errors import NetError
from ..registry import Registry

Shape = tuple[int, ...]
#: How many blobs a layer takes or makes: exactly n, or from (low, high) with high None for no limit.
Count = int | tuple[int, int | None]


@dataclass
class Context:
    """What a layer may know of the net it is part of.

    `caffe_arithmetic` asks for Caffe's own algorithms where others round differently (see `image_products`).
    `device` is where its tensors live, `rng` the generator (of that device) for what is random in a forward pass,
    `fill_rng` the CPU generator that fillers draw from. `training` is False in the TEST phase.
    """

    training: bool
    device: torch.device
    rng: torch.Generator
    fill_rng: torch.Generator = field(default_factory=torch.Generator)
    caffe_arithmetic: bool = False

    @classmethod
    def make(cls, training: bool, device: torch.device | str = "cpu", seed: int | None = None) -> Context:
        """A context with generators seeded from `seed`, or from the system's entropy if it is None."""
        device = torch.device(device)
        context = cls(training, device, torch.Generator(device), torch.Generator())
        for generator in (context.rng, context.fill_rng):
            if seed is None:
                generator.seed()
            else:
                generator.manual_seed(seed)
        return context


class Layer:
    """One layer of a net. `spec` is its LayerParameter, `param` the type's own message in it (or None).

    `blobs` are its parameters in Caffe's order. Types are registered with `@layer`, which sets the class attributes.
    """

    type: ClassVar[str]
    param_field: ClassVar[str | None]
    bottoms: ClassVar[Count]
    tops: ClassVar[Count | str]
    is_loss: ClassVar[bool]
    is_source: ClassVar[bool]
    #: Indices of the bottoms that never get a gradient (labels, indices, markers).
    undifferentiable: ClassVar[tuple[int, ...]]
    #: False where the blobs are statistics, which no gradient reaches.
    learns: ClassVar[bool] = True
    #: True where the top is memory of its own that the backward pass does not read: a layer in place may overwrite it.
    overwritable: ClassVar[bool] = False
    #: True where the shapes of the tops are known only after a forward pass.
    dynamic: ClassVar[bool] = False

    def __init__(self, spec: Any, context: Context, where: str) -> None:
        self.spec = spec
        self.name: str = spec.name
        self.context = context
        self.where = where
        self.param: Any = self._settings(spec)
        self.blobs: list[Blob] = []
        self._check_counts()

    # -- what a type defines ----------------------------------------------------------------------------------------

    def setup(self, shapes: Sequence[Shape]) -> None:
        """Checks the settings against the bottom shapes and makes the parameter blobs. Called once."""

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        """The top shapes that follow from the bottom `shapes`; raises `self.error(...)` if those cannot be."""
        return [shapes[0]] * len(self.spec.top)

    def forward(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The tops (a tensor if there is one, else a tuple) of the given bottoms."""
        raise NotImplementedError

    def initial(self, top: int) -> Tensor | None:
        """What the top of that index holds before the first forward pass, if it is not zeros."""
        return None

    def state(self) -> dict[str, Any] | None:
        """What an exact resume needs beside the blobs (a position in the data, say), as JSON can hold it."""
        return None

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `state` returned."""

    def rewind(self) -> None:
        """Starts the data anew, as after restoring a snapshot that Caffe wrote."""

    # -- what a type uses -------------------------------------------------------------------------------------------

    @property
    def training(self) -> bool:
        """Whether the net is in the TRAIN phase."""
        return self.context.training

    def add_param(self, shape: Sequence[int], filler: Any = None) -> Blob:
        """Appends a parameter blob of `shape`, filled by the FillerParameter `filler` (zeros without one)."""
        if wrong := memory.impossible(shape) or memory.too_much(4 * prod(shape)):
            raise self.error(f"parameter {len(self.blobs)}: {wrong}")
        tensor = torch.zeros(tuple(shape), dtype=torch.float32)
        if filler is not None:
            fillers.fill(tensor, filler, self.context.fill_rng, self.where)
        blob = Blob(tensor.to(self.context.device))
        self.blobs.append(blob)
        return blob

    def error(self, message: str, blob: str | None = None) -> NetError:
        """The exception to raise for this layer: `conv2 (net.prototxt:41): <message>`."""
        return NetError(f"{self.where}: {message}", layer=self.name, blob=blob)

    def canonical_axis(self, axis: int, shape: Shape, field_name: str = "axis") -> int:
        """`axis` counted from the front (negative ones count from the end), or an error naming `field_name`."""
        if not -len(shape) <= axis < len(shape):
            raise self.error(f"{field_name} is {axis}, but the bottom has {len(shape)} axes: {format_shape(shape)}")
        return axis % len(shape)

    def _settings(self, spec: Any) -> Any:
        """The type's own message in `spec`; the defaults of the first dialect that has it where the net's does not."""
        if self.param_field is None:
            return None
        if self.param_field not in spec.DESCRIPTOR.fields_by_name:
            specs = (dialect.message("LayerParameter")() for dialect in proto.all_dialects())
            spec = next(spec for spec in specs if self.param_field in spec.DESCRIPTOR.fields_by_name)
        return getattr(spec, self.param_field)

    # -- checks -----------------------------------------------------------------------------------------------------

    def _check_counts(self) -> None:
        found = len(self.spec.bottom), len(self.spec.top)
        self._check_count("bottom", found[0], self.bottoms)
        if self.tops == "bottoms":
            if found[0] != found[1]:
                raise self.error(f"a {self.type} layer has as many tops as bottoms; found {found[0]} bottoms, {found[1]} tops")
        elif found[1] or not self.is_loss:  # a loss layer that names no top gets one
            self._check_count("top", found[1], self.tops)
        if len(self.spec.loss_weight) not in (0, found[1]):
            raise self.error(f"found {len(self.spec.loss_weight)} loss_weight for {found[1]} tops; give one a top, or none")

    def _check_count(self, what: str, found: int, allowed: Count | str) -> None:
        low, high = allowed if isinstance(allowed, tuple) else (allowed, allowed)
        if found < low or (high is not None and found > high):
            expected = f"{low}" if low == high else f"at least {low}" if high is None else f"{low} to {high}"
            raise self.error(f"a {self.type} layer takes {expected} {what} blob(s), found {found}: "
                             f"{', '.join(getattr(self.spec, what)) or 'none'}")

    def __repr__(self) -> str:
        return f"<{self.type} {self.name}: {', '.join(self.spec.bottom)} -> {', '.join(self.spec.top)}>"


#: Every layer type, by the `type` that a prototxt names.
LAYERS: Registry[type[Layer]] = Registry("layer type")


def layer(
    type: str, *, bottoms: Count = 1, tops: Count | str = 1, param: str | None = None, loss: bool = False,
    source: bool = False, undifferentiable: tuple[int, ...] = (),
) -> Callable[[type[Layer]], type[Layer]]:
    """Registers a `Layer` class as the Caffe layer `type`.

    `param` is the LayerParameter field with its settings; `tops="bottoms"` asks for as many tops as bottoms; a `loss`
    layer's first top has loss weight 1 unless the net says otherwise (and is made up if the net names no top);
    a `source` makes its own data; `undifferentiable` are the indices of bottoms that never get a gradient.
    """

    def register(cls: type[Layer]) -> type[Layer]:
        cls.type, cls.param_field, cls.bottoms, cls.tops = type, param, bottoms, tops
        cls.is_loss, cls.is_source, cls.undifferentiable = loss, source, undifferentiable
        cls.dynamic = cls.dynamic or source
        return LAYERS.add(type)(cls)

    return register


def may_overwrite(x: Tensor) -> bool:
    """Whether torch lets a layer write into a bottom that nobody else reads: not where its gradient is asked for."""
    return not (x.is_leaf and x.requires_grad)


def format_shape(shape: Sequence[int]) -> str:
    """Caffe's way to write a shape: `64 3 11 11 (23232)`."""
    count = 1
    for dim in shape:
        count *= dim
    return f"{' '.join(map(str, shape))} ({count})".lstrip()
