"""`Net`: a prototxt's network on PyTorch, with Caffe's blobs, parameters, loss weights and rules of what gets a gradient.

A forward pass runs the layers in order and records one torch autograd graph over the whole net; a backward pass is one
call of torch's engine over that graph. What Caffe decides layer by layer (which blobs and parameters get gradients,
what a loss weight does to a top that is also consumed) `net_builder` decides once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from . import hdf5, proto
from .blob import KEEP_HINT, Blob, Released
from .economy import economize
from .errors import NetError, did_you_mean
from .graph import TEST, TRAIN, filter_layers, insert_splits, place_layers
from .layers import Context, Layer
from .net_builder import Learnable, NetBuilder, Step
from .proto import Document
from .weights import CAFFE, LoadOptions, LoadReport, copy_weights

log = logging.getLogger(__name__)

PHASES = {"TRAIN": TRAIN, "TEST": TEST, TRAIN: TRAIN, TEST: TEST}


class Net:
    """A network built from a NetParameter: the path of a prototxt, or a Document.

    `phase` is "TRAIN" or "TEST" (or Caffe's 0 and 1), `level` and `stages` complete the NetState that filters layers;
    given as arguments they take precedence over the file's `state`, stages are added to it. `seed` makes fillers,
    dropout and random crops reproducible. With `keep_blobs` the data and diffs of all blobs are there after a pass, as in
    Caffe. Without it (or with the names of some blobs) only inputs, outputs and parameters (and those blobs) are, which
    saves memory and time (see `economy`); to read another blob is a `NetError`.
    With `caffe_arithmetic` convolutions are computed by Caffe's own algorithm, which is slower, so that sums are rounded
    as there (see `layers.image_products`). On CUDA, TF32 is switched off for the process: Caffe computes in float32.

    Raises `NetError` naming the layer and its file:line for a net that cannot be, `UnknownType` for an unknown layer.
    """

    def __init__(
        self, source: str | os.PathLike[str] | Document, phase: str | int = "TEST", *, level: int | None = None,
        stages: Sequence[str] = (), device: torch.device | str = "cpu", seed: int | None = None,
        keep_blobs: bool | Collection[str] = True,
        caffe_arithmetic: bool = False,
    ) -> None:
        document = source if isinstance(source, Document) else proto.read_text(os.fspath(source), "NetParameter")
        for note in document.notes:
            log.warning("%s: %s", document.path, note)
        if phase not in PHASES:
            raise NetError(f'unknown phase {phase!r}; it is "TRAIN" or "TEST"')
        self.path = document.path
        self.dialect = document.dialect
        self.name: str = document.message.name
        self.phase = PHASES[phase]
        self.device = torch.device(device)
        self.keep_blobs = keep_blobs
        self._keeps_all = keep_blobs is True
        self.state = _net_state(document.message, self.phase, level, stages)
        self.force_backward: bool = document.message.force_backward
        compute_in_float32(self.device)
        self.context = Context.make(self.phase == TRAIN, self.device, seed)
        self.context.caffe_arithmetic = caffe_arithmetic

        builder = NetBuilder(self.context, self.force_backward)
        builder.build(insert_splits(filter_layers(place_layers(document), self.state)))
        self.blobs: dict[str, Blob] = builder.blobs
        self.params: dict[str, list[Blob]] = builder.params
        self.learnable: list[Learnable] = builder.learnable
        self.inputs: list[str] = builder.inputs
        self.outputs: list[str] = builder.outputs
        self.loss_weights: dict[str, float] = {name: weight for name, _, weight in builder.losses}
        self._losses = [(blob, weight) for _, blob, weight in builder.losses]
        self._steps: list[Step] = builder.steps
        self._learns = any(step.need_backward for step in self._steps)
        #: The last layer of the pass that runs, and how many layers follow the present shapes.
        self._end, self._shaped = len(self._steps) - 1, len(self._steps)
        if not self._keeps_all:
            kept = [*self.inputs, *self.outputs, *self._checked(keep_blobs or ())]
            economize(self._steps, {id(self.blobs[name]) for name in kept})
        self._positions = {step.layer.name: position for position, step in enumerate(self._steps)}
        log.info("Network initialization done.")

    # -- what the net is made of ------------------------------------------------------------------------------------

    @property
    def layers(self) -> list[Layer]:
        """The layers in the order they run, Caffe's automatic Split layers included."""
        return [step.layer for step in self._steps]

    @property
    def steps(self) -> Sequence[Step]:
        """The layers with their blobs and the versions of them that each reads, in the order they run."""
        return tuple(self._steps)

    @property
    def layer_dict(self) -> dict[str, Layer]:
        """The layers by name."""
        return {step.layer.name: step.layer for step in self._steps}

    @property
    def bottom_names(self) -> dict[str, list[str]]:
        """Each layer's bottom blobs."""
        return {step.layer.name: list(step.layer.spec.bottom) for step in self._steps}

    @property
    def top_names(self) -> dict[str, list[str]]:
        """Each layer's top blobs."""
        return {step.layer.name: step.top_names for step in self._steps}

    @property
    def needs_backward(self) -> dict[str, bool]:
        """Which layers a backward pass goes through, as Caffe reports it."""
        return {step.layer.name: step.need_backward for step in self._steps}

    @property
    def gradients_of(self) -> dict[str, list[bool]]:
        """For each layer, which of its bottoms get a gradient."""
        return {step.layer.name: [step.need_backward and k not in step.cut for k in range(len(step.bottoms))]
                for step in self._steps}

    def made(self) -> list[tuple[Layer, tuple[Tensor, ...]]]:
        """What each layer made in the last pass, in order: also what layers in place have put other values for since."""
        return [(step.layer, step.tensors) for step in self._steps if step.tensors is not None]

    # -- running ----------------------------------------------------------------------------------------------------

    def forward(self, start: str | None = None, end: str | None = None) -> dict[str, Tensor]:
        """Runs the layers from `start` to `end` (names; the whole net by default); returns the output blobs' tensors."""
        self.run(start, end)
        return {name: self.blobs[name].tensor.detach() for name in self.outputs}

    def run(self, start: str | None = None, end: str | None = None) -> None:
        """Runs the layers from `start` to `end` (names; the whole net by default)."""
        first, last = self._position(start, 0), self._position(end, len(self._steps) - 1)
        for position in range(first):
            if self._steps[position].tensors is None:
                self._take_as_given(position)
        self._check_present(first, last)
        self._reach(last)
        with torch.set_grad_enabled(self._learns and torch.is_grad_enabled()):
            for position in range(first, last + 1):
                self._run(self._steps[position], position)

    def _check_present(self, first: int, last: int) -> None:
        """Raises `NetError` if the layers from `first` to `last` read something older that was not kept."""
        if not first or self._keeps_all:
            return
        for step in self._steps[first:last + 1]:
            for name, blob, (position, _) in zip(step.layer.spec.bottom, step.bottoms, step.sources):
                if position < first and isinstance(blob.tensor, Released):
                    raise step.layer.error(f'a pass cannot begin after "{name}" is made, which is not kept. {KEEP_HINT}',
                                           name)

    def _reach(self, last: int) -> None:
        """Prepares for a pass that ends at layer `last`: those after it need not fit the shapes of this pass."""
        self._end = last
        if last >= self._shaped:
            self._reshape(0)

    def _take_as_given(self, position: int) -> None:
        """Lets what the tops of a layer hold now stand for what it would make."""
        step = self._steps[position]
        self._finish(step, position, tuple(blob.tensor for blob in step.tops))

    def _run(self, step: Step, position: int) -> None:
        if step.given:
            self._finish(step, position, tuple(blob.tensor for blob in step.tops))
            return
        bottoms = [blob.tensor for blob in step.bottoms]
        try:
            if step.need_backward:
                for k in step.cut:
                    bottoms[k] = bottoms[k].detach()
                result = step.layer.forward(*bottoms)
            elif torch.is_grad_enabled():
                with torch.no_grad():
                    result = step.layer.forward(*bottoms)
            else:
                result = step.layer.forward(*bottoms)
        except RuntimeError as error:  # torch's: out of memory, say
            if step.layer.type == "Python":
                raise
            raise step.layer.error(f"cannot run: {error}") from error
        self._finish(step, position, result if isinstance(result, tuple) else (result,))

    def _finish(self, step: Step, position: int, tensors: tuple[Tensor, ...]) -> None:
        for k in step.leaves:
            if not tensors[k].requires_grad and torch.is_grad_enabled():
                tensors[k].requires_grad_(True)
        for blob, tensor in zip(step.tops, tensors):
            blob.tensor = tensor
        step.tensors = list(tensors)
        for source, top, spent in step.spent:
            source.tensors[top] = None
            if spent is not None:
                spent.release()
        if step.layer.dynamic:
            shapes = [tuple(tensor.shape) for tensor in tensors]
            if shapes != step.shapes:
                step.shapes = shapes
                self._reshape(position + 1)

    @property
    def loss(self) -> Tensor:
        """The weighted sum of all loss tops of the last forward pass, a scalar on the net's device."""
        total = None
        for blob, weight in self._losses:
            term = blob.tensor.detach()
            term = term.sum() if term.dim() else term
            term = term * weight if weight != 1 else term
            total = term if total is None else total + term
        return torch.zeros((), device=self.device) if total is None else total

    def backward(self, start: str | None = None, end: str | None = None) -> None:
        """Gradients from layer `start` back to layer `end`; see `propagate`."""
        self.propagate(start, end)

    def propagate(self, start: str | None = None, end: str | None = None) -> None:
        """Gradients from layer `start` back to layer `end` (names; the whole net by default), after a forward pass.

        Starts from the diffs of the blobs that no layer in that range propagates into: the loss weights, and what the
        user has written there. Parameter diffs are added to (see `clear_param_diffs`), blob diffs replaced. Layers of
        the range that never ran are run first.
        """
        first, last = self._position(end, 0), self._position(start, len(self._steps) - 1)
        steps = self._steps[first:last + 1]
        self._complete(first, last)
        seeds = self._seeds(steps)
        if not seeds:
            return
        tops, diffs = [tensor for tensor, _ in seeds], [grad for _, grad in seeds]
        if self._keeps_all or len(steps) < len(self._steps):
            self._backward_to_blobs(steps, tops, diffs)
        else:
            self._backward_to_params(tops, diffs)

    def _backward_to_blobs(self, steps: list[Step], tops: list[Tensor], diffs: list[Tensor]) -> None:
        params = {id(blob): blob for step in steps if step.need_backward
                  for blob in step.layer.blobs if blob.tensor.requires_grad}
        interior = self._interior(steps) if self._keeps_all else []
        targets = [blob.tensor for blob in params.values()] + [tensor for _, tensor in interior]
        if not targets:
            return
        grads = _apart(torch.autograd.grad(tops, targets, diffs, retain_graph=self._keeps_all, allow_unused=True), diffs)
        for blob, grad in zip(params.values(), grads):
            if grad is not None:
                blob.grad = grad if blob.grad is None else blob.grad.add_(grad)
        for (blob, tensor), grad in zip(interior, grads[len(params):]):
            blob.grad = torch.zeros_like(tensor) if grad is None else grad

    def _backward_to_params(self, tops: list[Tensor], diffs: list[Tensor]) -> None:
        """The same for the parameters alone, which torch does faster through their `grad`."""
        for learnable in self.learnable:
            learnable.blob.tensor.grad = learnable.blob.grad
        torch.autograd.backward(tops, diffs)
        for learnable in self.learnable:
            learnable.blob.grad = learnable.blob.tensor.grad
            learnable.blob.tensor.grad = None

    def _complete(self, first: int, last: int) -> None:
        """Makes up for forward passes that there were none of: sources up to `first` and all before it are not run."""
        for position, step in enumerate(self._steps[:last + 1]):
            if step.tensors is None and position >= first and not step.layer.is_source:
                self._run(step, position)
            elif step.tensors is None:
                self._take_as_given(position)

    def _seeds(self, steps: list[Step]) -> list[tuple[Tensor, Tensor]]:
        """(top, its diff) for all tops of `steps` that have one and that no later one of them propagates into."""
        passed = {step.sources[k] for step in steps if step.need_backward
                  for k in range(len(step.bottoms)) if k not in step.cut}
        seeds = []
        for step in steps:
            position = self._positions[step.layer.name]
            for k, (blob, tensor) in enumerate(zip(step.tops, step.tensors)):
                if not step.need_backward or (position, k) in passed or tensor is None or not tensor.requires_grad:
                    continue
                if blob.grad is None or blob.grad.shape != tensor.shape:
                    weight = step.loss_weights[k]
                    wanted = weight or self.force_backward
                    blob.grad = torch.full_like(tensor, weight, requires_grad=False) if wanted else None
                if blob.grad is not None:
                    seeds.append((tensor, blob.grad))
        return seeds

    def _interior(self, steps: list[Step]) -> list[tuple[Blob, Tensor]]:
        """(blob, its version whose gradient is shown): the earliest that `steps` read, as in-place layers overwrite."""
        versions: dict[int, tuple[Blob, Tensor]] = {}
        for step in reversed(steps):
            if not step.need_backward:
                continue
            for k, (blob, (position, top)) in enumerate(zip(step.bottoms, step.sources)):
                tensor = self._steps[position].tensors[top] if k not in step.cut else None
                if tensor is not None and tensor.requires_grad:
                    versions[id(blob)] = blob, tensor
        return list(versions.values())

    def forward_backward(self) -> Tensor:
        """One forward and one backward pass of the whole net; returns `loss`, without waiting for the device."""
        self._reach(len(self._steps) - 1)
        for position, step in enumerate(self._steps):
            self._run(step, position)
        self.propagate()
        return self.loss

    def clear_param_diffs(self) -> None:
        """Sets the diffs of all parameters to zero."""
        for learnable in self.learnable:
            learnable.blob.grad = None

    def reshape(self) -> None:
        """Carries the shapes of the inputs through the net, as a forward pass does by itself."""
        self._end = len(self._steps) - 1
        self._reshape(0)

    def _reshape(self, first: int) -> None:
        """Carries the shapes from layer `first` on to the last one of the pass."""
        for step in self._steps[first:self._end + 1]:
            if step.given:
                step.shapes = [blob.shape for blob in step.tops]
            if step.layer.is_source:
                continue
            bottoms = [self._steps[position].shapes[top] for position, top in step.sources]
            step.shapes = [tuple(shape) for shape in step.layer.reshape(bottoms)]
            for blob, shape in zip(step.tops, step.shapes):
                if blob.shape != shape:
                    blob.reshape(*shape)
        self._shaped = self._end + 1

    def _position(self, name: str | None, default: int) -> int:
        if name is None:
            return default
        if name not in self._positions:
            raise NetError(f'the net has no layer "{name}"{did_you_mean(name, self._positions)}; its layers: '
                           f"{', '.join(self._positions)}", name)
        return self._positions[name]

    def _checked(self, names: Collection[str]) -> Collection[str]:
        """The names, if all are blobs of this net."""
        for name in names:
            if name not in self.blobs:
                raise NetError(f'{self.path or "the net"}: has no blob "{name}"{did_you_mean(name, self.blobs)}; its blobs: '
                               f"{', '.join(self.blobs)}", blob=name)
        return names

    # -- weights ----------------------------------------------------------------------------------------------------

    def copy_from(self, source: str | os.PathLike[str] | Document, options: LoadOptions = CAFFE) -> LoadReport:
        """Copies weights into the layers of the same names (Caffe's CopyTrainedLayersFrom); see `weights.copy_weights`."""
        return copy_weights(self, source, options)

    def share_with(self, other: Net) -> None:
        """Makes this net use the parameter blobs of `other`'s layers of the same names (Caffe's ShareTrainedLayersWith)."""
        for step in self._steps:
            theirs = other.params.get(step.layer.name)
            if theirs is None:
                continue
            ours = step.layer.blobs
            if len(theirs) != len(ours) or any(a.shape != b.shape for a, b in zip(ours, theirs)):
                raise NetError(f"{step.layer.where}: cannot share weights with the layer of this name in the other net: "
                               f"blobs {[b.shape for b in ours]} against {[b.shape for b in theirs]}", step.layer.name)
            ours[:] = theirs

    def to_document(self, with_diffs: bool = False) -> Document:
        """The net as the NetParameter that Caffe writes: every layer that runs, Splits included, with its blobs."""
        message = self.dialect.message("NetParameter")(name=self.name)
        arrays, diffs = {}, {}
        for i, step in enumerate(self._steps):
            spec = message.layer.add()
            spec.CopyFrom(step.layer.spec)
            spec.ClearField("blobs")
            if not spec.HasField("phase"):
                spec.phase = self.phase
            for j, blob in enumerate(step.layer.blobs):
                spec.blobs.add()
                arrays["layer", i, "blobs", j] = blob.data
                if with_diffs:
                    diffs["layer", i, "blobs", j] = blob.diff
        return Document(message, self.dialect, None, {}, arrays, diffs)

    def save(self, path: str | os.PathLike[str], with_diffs: bool = False) -> None:
        """Writes a `.caffemodel`, or HDF5 if `path` ends in .h5; whole or not at all."""
        if os.fspath(path).endswith(".h5"):
            self.save_hdf5(path, with_diffs)
        else:
            proto.write_binary(path, self.to_document(with_diffs))

    def save_hdf5(self, path: str | os.PathLike[str], with_diffs: bool = False) -> None:
        """Writes the parameters as HDF5; whole or not at all."""
        document = self.to_document(with_diffs)
        # Caffe leaves shared copies out of HDF5 files.
        owners = {(learnable.layer_name, learnable.index) for learnable in self.learnable}
        for i, step in enumerate(self._steps):
            for j in range(len(step.layer.blobs)):
                if (step.layer.name, j) not in owners:
                    del document.arrays["layer", i, "blobs", j]
        hdf5.write_weights(path, document)


def compute_in_float32(device: torch.device) -> None:
    """Switches TF32 off on CUDA, which keeps 10 bits of the mantissa: Caffe computes in float32."""
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def _apart(grads: Sequence[Tensor | None], diffs: list[Tensor]) -> list[Tensor | None]:
    """The gradients, each with memory of its own, to be written into: torch may hand out one of `diffs`, one tensor for
    several inputs (of a sum), or one value spread over a tensor."""
    taken = {diff.data_ptr() for diff in diffs}
    result = []
    for grad in grads:
        if grad is not None and (grad.data_ptr() in taken or 0 in grad.stride()):
            grad = grad.clone(memory_format=torch.contiguous_format)
        if grad is not None:
            taken.add(grad.data_ptr())
        result.append(grad)
    return result


def _net_state(message: Any, phase: int, level: int | None, stages: Sequence[str]) -> Any:
    state = type(message.state)()
    state.CopyFrom(message.state)
    state.phase = phase
    if level is not None:
        state.level = level
    state.stage.extend(stages)
    return state
