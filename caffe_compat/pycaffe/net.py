"""pycaffe's Net: the core's network with numpy arrays in and out, under the names of `caffe.Net`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from .. import hdf5
from .. import net as core
from ..errors import NetError, WeightError, did_you_mean
from ..layers import Layer
from ..layers.memory_data import MemoryData
from ..layers.python import Python, PythonLayer
from ..mirror import refresh_arrays
from ..net_builder import Step
from ..proto import Document
from ..weights import CAFFE, LoadOptions, LoadReport
from . import mode
from .batches import Batches
from .devices import move_net
from .net_spec import NoSuchName, WrongValue

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]
Path = str | os.PathLike[str]


class Named(dict):
    """A dict whose keys are names of the net; asked for one that is not there, it says which there are."""

    def __init__(self, kind: str, items: Any) -> None:
        super().__init__(items)
        self._kind = kind

    def __missing__(self, name: Any) -> Any:
        raise NoSuchName(f'the net has no {self._kind} "{name}"{did_you_mean(str(name), self)}; '
                         f"it has {', '.join(self) or 'none'}")


class Net(Batches, core.Net):
    """A network from a prototxt: `Net(network_file, phase, level=0, stages=None, weights=None)`.

    Also the old form `Net(network_file, weights, phase)`. `device`, `seed` and `options` are the core's (see there); by
    default the device is the one that `set_mode_cpu` or `set_mode_gpu` chose, also if that changes later, and the seed
    comes from `set_random_seed`.

    `blobs` and `params` are read and written through the numpy arrays `data` and `diff` of each Blob. An array that is
    held goes on showing the values of later passes, as in Caffe, unless its memory belongs to somebody else (say, to a
    data set).
    """

    def __init__(
        self, network_file: Path | Document, phase: str | int = "TEST", level: int | None = None,
        stages: Sequence[str] | None = None, weights: Path | None = None, *,
        device: torch.device | str | None = None, seed: int | None = None, **options: Any,
    ) -> None:
        if isinstance(phase, str | os.PathLike) and phase not in core.PHASES:
            if level not in core.PHASES:
                raise NetError(f'unknown phase "{phase}"; it is "TRAIN" or "TEST", and weights are given as '
                               f'weights="{phase}"')
            log.warning("Net(network_file, weights, phase) is deprecated; use Net(network_file, phase, weights=...)")
            phase, weights, level = level, phase, None
        if isinstance(stages, str):
            raise NetError(f'stages is a list of names; found "{stages}"')
        self._mode = mode.current()
        self._follows = device is None
        super().__init__(
            network_file, phase, level=level or 0, stages=stages or (),  # a level in the file counts for nothing
            seed=mode.next_seed() if seed is None else seed,
            device=self._mode.device if device is None else device, **options)
        self.blobs = Named("blob", self.blobs)
        self.params = Named("layer with parameters called", self.params)
        self._callbacks: dict[str, list[Callable[[int], Any]]] = {}
        if weights is not None:
            self.copy_from(weights)

    # -- what the net is made of ------------------------------------------------------------------------------------

    @property
    def layers(self) -> list[Layer | PythonLayer]:
        """The layers in the order they run; a Python layer is the user's own object."""
        return [step.layer.instance if isinstance(step.layer, Python) else step.layer for step in self._steps]

    @property
    def layer_dict(self) -> dict[str, Layer | PythonLayer]:
        """The layers by name."""
        return Named("layer", zip(self._layer_names, self.layers))

    @property
    def top_names(self) -> dict[str, list[str]]:
        """Each layer's top blobs."""
        return Named("layer", super().top_names)

    @property
    def bottom_names(self) -> dict[str, list[str]]:
        """Each layer's bottom blobs."""
        return Named("layer", super().bottom_names)

    @property
    def blob_loss_weights(self) -> dict[str, float]:
        """Each blob's weight in the loss, 0 for most."""
        return Named("blob", {name: self.loss_weights.get(name, 0.0) for name in self.blobs})

    _layer_names = property(lambda self: [step.layer.name for step in self._steps], doc="The layers' names, in order.")
    _blob_names = property(lambda self: list(self.blobs), doc="The blobs' names, in order.")
    _blobs = property(lambda self: list(self.blobs.values()), doc="The blobs, in order.")
    _blob_loss_weights = property(lambda self: list(self.blob_loss_weights.values()), doc="As `_blobs`.")
    _inputs = property(lambda self: self._indices(self.inputs), doc="The positions of the inputs among the blobs.")
    _outputs = property(lambda self: self._indices(self.outputs), doc="The positions of the outputs among the blobs.")

    def _top_ids(self, layer: int) -> list[int]:
        return self._indices(self._steps[layer].top_names)

    def _bottom_ids(self, layer: int) -> list[int]:
        return self._indices(self._steps[layer].layer.spec.bottom)

    def _indices(self, names: Iterable[str]) -> list[int]:
        order = list(self.blobs)
        return [order.index(name) for name in names]

    # -- running ----------------------------------------------------------------------------------------------------

    def forward(self, blobs: Sequence[str] | None = None, start: str | None = None, end: str | None = None,
                **inputs: np.ndarray) -> Arrays:
        """Runs the layers from `start` to `end` (names; all by default) on `inputs`, one array for each input.

        Returns the output blobs' data (of a partial pass, the tops of `end`), and that of `blobs`, by name.
        """
        names = [*(self.outputs if end is None else self.top_names[end]), *self._known(blobs)]
        self._write("data", inputs, self.inputs)
        self.run(start, end)
        return {name: self.blobs[name].data for name in names}

    def backward(self, diffs: Sequence[str] | None = None, start: str | None = None, end: str | None = None,
                 **top_diffs: np.ndarray) -> Arrays:
        """Gradients from layer `start` back to layer `end` (the whole net by default), after a forward pass.

        `top_diffs` are the diffs to start from, one array for each output; by default those of the losses, and what was
        written into the outputs' diffs. Returns the diffs of the inputs (of a partial pass, of the bottoms of `end`),
        and those of `diffs`.
        """
        names = [*(self.inputs if end is None else self.bottom_names[end]), *self._known(diffs)]
        self._write("diff", top_diffs, self.outputs)
        self.propagate(start, end)
        return {name: self.blobs[name].diff for name in names}

    def _known(self, names: Sequence[str] | None) -> list[str]:
        if isinstance(names, str):
            raise WrongValue(f'expected a list of blob names, found "{names}"')
        return [name for name in names or () if self.blobs[name] is not None]

    def _write(self, what: str, arrays: dict[str, np.ndarray], names: Sequence[str]) -> None:
        if not arrays:
            return
        if set(arrays) != set(names):
            role = "inputs" if what == "data" else "outputs"
            raise WrongValue(f"the arrays given are for {', '.join(sorted(arrays))}, but the {role} of the net are "
                             f"{', '.join(names) or 'none'}; give one for each")
        for name, values in arrays.items():
            blob, values = self.blobs[name], np.asarray(values)
            if values.shape[:1] != blob.shape[:1]:
                raise WrongValue(f'the array given for "{name}" is not batch sized: its shape is {values.shape}, the '
                                 f"blob's {blob.shape}; reshape the blob, or use forward_all")
            try:
                blob.write(values, diff=what == "diff")
            except (TypeError, ValueError):
                raise WrongValue(f'the array given for "{name}" ({values.dtype}, shape {values.shape}) does not fit '
                                 f"the blob, whose shape is {blob.shape}") from None

    def _forward(self, start: int, end: int) -> float:
        """`forward` by the layers' positions; returns the loss of these layers."""
        names = self._layer_names
        self.run(names[start], names[end])
        return float(sum(float(np.sum(blob.data)) * weight for step in self._steps[start:end + 1]
                         for blob, weight in zip(step.tops, step.loss_weights) if weight))

    def _backward(self, start: int, end: int) -> None:
        """`backward` by the layers' positions."""
        names = self._layer_names
        self.propagate(names[start], names[end])

    def run(self, start: str | None = None, end: str | None = None) -> None:
        """`forward` without arrays in and out."""
        self.follow_mode()
        super().run(start, end)
        refresh_arrays()

    def propagate(self, start: str | None = None, end: str | None = None) -> None:
        """`backward` without arrays in and out."""
        if "before_backward" in self._callbacks or "after_backward" in self._callbacks:
            first, last = self._position(end, 0), self._position(start, len(self._steps) - 1)
            for position in range(last, first - 1, -1):
                name = self._steps[position].layer.name
                self._call("before_backward", position)
                super().propagate(name, name)
                self._call("after_backward", position)
        else:
            super().propagate(start, end)
        refresh_arrays()

    def forward_backward(self) -> torch.Tensor:
        """One forward and one backward pass of the whole net; returns the loss, a tensor on the net's device."""
        self.follow_mode()
        loss = super().forward_backward()
        refresh_arrays()
        return loss

    def follow_mode(self) -> None:
        """Takes over what `set_mode_cpu`, `set_mode_gpu` and `set_random_seed` have set since the last pass."""
        before, self._mode = self._mode, mode.current()
        if before is self._mode:
            return
        if self._follows and self.device != self._mode.device:
            move_net(self, self._mode.device)
        if before.seedings != self._mode.seedings:
            self.context.rng.manual_seed(self._mode.seed)

    def clear_param_diffs(self) -> None:
        super().clear_param_diffs()
        refresh_arrays()

    def reshape(self) -> None:
        super().reshape()
        refresh_arrays()

    def set_input_arrays(self, data: np.ndarray, labels: np.ndarray) -> None:
        """Makes a net whose first layer is a MemoryData layer read from these float32 arrays, which are not copied."""
        first = self._steps[0].layer
        if not isinstance(first, MemoryData):
            raise NetError(f"{first.where}: arrays are for a net whose first layer is a MemoryData layer, this is a "
                           f"{first.type} layer", first.name)
        first.set_input_arrays(data, labels)

    _set_input_arrays = set_input_arrays

    # -- callbacks --------------------------------------------------------------------------------------------------

    def before_forward(self, callback: Callable[[int], Any]) -> None:
        """Calls back with the position of each layer before it runs forward."""
        self._call_back("before_forward", callback)

    def after_forward(self, callback: Callable[[int], Any]) -> None:
        """Calls back with the position of each layer after it ran forward."""
        self._call_back("after_forward", callback)

    def before_backward(self, callback: Callable[[int], Any]) -> None:
        """Calls back with the position of each layer before it runs backward, which then is done layer by layer."""
        self._call_back("before_backward", callback)

    def after_backward(self, callback: Callable[[int], Any]) -> None:
        """Calls back with the position of each layer after it ran backward, which then is done layer by layer."""
        self._call_back("after_backward", callback)

    def _call_back(self, event: str, callback: Callable[[int], Any]) -> None:
        if not callable(callback):
            raise WrongValue(f"{event} takes a function of the layer's position, not {callback!r}")
        if event.endswith("backward") and not self._keeps_all:
            raise NetError(f"{event}: a net without keep_blobs does not run backward layer by layer")
        self._callbacks.setdefault(event, []).append(callback)
        self._run = self._run_and_call  # nets without callbacks do not pay for them

    def _run_and_call(self, step: Step, position: int) -> None:
        self._call("before_forward", position)
        super()._run(step, position)
        self._call("after_forward", position)

    def _call(self, event: str, position: int) -> None:
        for callback in self._callbacks.get(event, ()):
            refresh_arrays(now=True)
            callback(position)

    # -- weights ----------------------------------------------------------------------------------------------------

    def copy_from(self, source: Path | Document, options: LoadOptions = CAFFE) -> LoadReport:
        report = super().copy_from(source, options)
        refresh_arrays()
        return report

    def load_hdf5(self, path: Path) -> LoadReport:
        """Copies weights from a file that `save_hdf5` or Caffe wrote."""
        if not hdf5.is_hdf5(os.fspath(path)):
            raise WeightError(f"{os.fspath(path)}: no such HDF5 file; copy_from reads binary ones too")
        return self.copy_from(path)

