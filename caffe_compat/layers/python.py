"""Python: a layer that a class of the user computes, in numpy (`caffe.Layer` of pycaffe).

Which classes a file may name: those of modules that the program has imported itself. Importing a module only because
a file names it would run whatever code lies there, so that takes a word of the caller: `allow_python_layers()`, or the
flag of that name on the command line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..blob import Blob
from ..errors import NetError, did_you_mean
from ..graph import TEST, TRAIN
from .base import Layer, Shape, layer

_allowed = False


def allow_python_layers(allow: bool = True) -> None:
    """Lets network files have modules imported that they name in `python_param`; False forbids it again."""
    global _allowed
    _allowed = allow


class BlobVec(list[Blob]):
    """A layer's parameter blobs."""

    def add_blob(self, *shape: int) -> None:
        """Appends a blob of zeros."""
        self.append(Blob(torch.zeros(shape)))


class PythonLayer:
    """What the classes of Python layers derive from; they define the four methods below.

    `bottom` and `top` are lists of blobs, whose `data` and `diff` are numpy arrays to read and to write in place, and
    which `reshape(*shape)` shapes. What the class raises reaches the caller as it is.

    `blobs` are the parameters (`self.blobs.add_blob(*shape)` in `setup`; `backward` adds to their diffs), `param_str`
    is the text of that name in the network file and `phase` TRAIN or TEST.
    """

    type = "Python"

    def __init__(self, param: Any) -> None:
        self.spec = param
        self.name: str = param.name
        self.blobs = BlobVec()
        self.param_str = self.param_str_ = param.python_param.param_str
        self.phase = TEST

    def setup(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Once, when the net is built."""

    def reshape(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Shapes the tops; before every forward pass, and when the net is built."""

    def forward(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Writes the tops' data."""
        raise self._missing("forward(self, bottom, top)")

    def backward(self, top: Sequence[Blob], propagate_down: Sequence[bool], bottom: Sequence[Blob]) -> None:
        """Writes the diffs of those bottoms that `propagate_down` asks for, zeros until then, from the tops' diffs."""
        raise self._missing("backward(self, top, propagate_down, bottom)")

    def state(self) -> dict[str, Any] | None:
        """What an exact resume needs beside the blobs, as JSON can hold it; written into snapshots."""
        return None

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `state` returned."""

    def rewind(self) -> None:
        """Starts the data anew, as after restoring a snapshot that Caffe wrote."""

    def _missing(self, method: str) -> NetError:
        return NetError(f"{self.name}: the class {type(self).__name__} of this Python layer does not define {method}",
                        self.name)


@layer("Python", bottoms=(0, None), tops=(0, None), param="python_param")
class Python(Layer):
    """Whatever the class `python_param.layer` of the module `python_param.module` computes (PythonParameter).

    The class works on blobs of its own, in numpy; on a GPU that means copies to the host and back. `share_in_parallel`
    has no meaning here.
    """

    dynamic = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.instance: PythonLayer = self._class()(self.spec)
        self.instance.phase = TRAIN if self.training else TEST
        self._bottom = [Blob(self._zeros(shape)) for shape in shapes]
        names = list(self.spec.bottom)
        #: In place, as in Caffe, a top is the bottom, and has its shape.
        self._top = [self._bottom[k] if names[k:k + 1] == [name] else Blob(self._zeros(()))
                     for k, name in enumerate(self.spec.top)]
        self.blobs = self.instance.blobs
        self.instance.setup(self._bottom, self._top)
        for blob in self.blobs:
            blob.tensor = blob.tensor.to(self.context.device)

    def _class(self) -> type[PythonLayer]:
        module_name, name = self.param.module, self.param.layer
        if module_name not in sys.modules and not _allowed:
            raise self.error(f"the Python layer {module_name}.{name} is code that the network file asks for; if you "
                             "trust it, import the module first, call allow_python_layers(), or give "
                             "--allow_python_layers")
        try:
            module = import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name != module_name:
                raise
            raise self.error(f'there is no module "{module_name}" (python_param); is it in PYTHONPATH?') from None
        found = getattr(module, name, None)
        if not (isinstance(found, type) and issubclass(found, PythonLayer)):
            classes = [key for key, value in vars(module).items()
                       if isinstance(value, type) and issubclass(value, PythonLayer) and value is not PythonLayer]
            raise self.error(f'the module "{module_name}" has no class "{name}" that derives from caffe.Layer'
                             f"{did_you_mean(name, classes)}; it has {', '.join(classes) or 'none'}")
        return found

    def _zeros(self, shape: Shape) -> Tensor:
        return torch.zeros(shape, device=self.context.device)

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        for blob, shape in zip(self._bottom, shapes):
            if blob.shape != shape:
                blob.reshape(*shape)
        self.instance.reshape(self._bottom, self._top)
        return [blob.shape for blob in self._top]

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        params = [blob.tensor for blob in self.blobs]
        if self._top and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*bottoms, *params)):
            return _Call.apply(self, len(bottoms), *bottoms, *params)
        return self.compute(bottoms)

    def compute(self, bottoms: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Runs the class forward; the tops are copies, since the class goes on writing into its own."""
        for blob, tensor in zip(self._bottom, bottoms):
            blob.tensor = tensor.detach().clone() if blob in self._top else tensor.detach()
        self.instance.reshape(self._bottom, self._top)
        self.instance.forward(self._bottom, self._top)
        return tuple(blob.tensor.clone() for blob in self._top)

    def differentiate(self, diffs: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
        """Runs the class backward: diffs of the tops to those of the bottoms that are wanted."""
        for blob in self._bottom:
            blob.grad = torch.zeros_like(blob.tensor)
        for blob, diff in zip(self._top, diffs):
            blob.grad = diff.clone()
        self.instance.backward(self._top, list(wanted), self._bottom)
        return [blob.grad if is_wanted else None for blob, is_wanted in zip(self._bottom, wanted)]

    def state(self) -> dict[str, Any] | None:
        return self.instance.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.instance.load_state(state)

    def rewind(self) -> None:
        self.instance.rewind()


class _Call(torch.autograd.Function):
    """A Python layer in torch's graph. Its class writes parameter diffs itself, so that none are returned for them;
    they are inputs all the same, or torch would not ask for the gradient of a layer whose bottoms need none."""

    @staticmethod
    def forward(ctx: Any, owner: Python, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.owner, ctx.count, ctx.inputs = owner, count, len(tensors)
        return owner.compute(tensors[:count])

    @staticmethod
    def backward(ctx: Any, *diffs: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[2:2 + ctx.count]
        return (None, None, *ctx.owner.differentiate(diffs, wanted), *[None] * (ctx.inputs - ctx.count))
