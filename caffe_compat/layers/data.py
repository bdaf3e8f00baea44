"""Layers that make their own data: Data (databases), Input and DummyData; and `ReadingLayer`, what readers share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from .. import fillers, memory, proto
from ..db.batches import Batches, DatumItems, ImageBatches
from ..db.database import Cursor, open_database
from ..db.read_ahead import ReadAhead
from ..db.transform import Transformer
from .base import Layer, Shape, layer

#: Small batches are read ahead up to so many bytes, so that the reading thread wakes up once for many of them.
AHEAD_BYTES = 1 << 20


class ReadingLayer(Layer):
    """A layer whose tops are read in a background thread, ahead of the forward passes that return them.

    `state` and `load_state` let a run go on exactly where it stopped: what was read ahead does not count as consumed.
    Reading errors are raised by `forward`. The thread starts with the first forward pass and ends with `close` or the
    layer.
    """

    dynamic = True
    #: How many batches are read ahead at least (DataParameter.prefetch).
    prefetch = 4
    #: How many records or images there are to read; None if the layer cannot tell.
    records: int | None = None

    @abstractmethod
    def open(self) -> Batches:
        """What the layer reads; called once."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        self._batches = self.open()
        self._batches.device = self.context.device
        self._start = self._state = self._batches.state()
        self._ahead: ReadAhead[tuple[list[Tensor], dict[str, Any]]] | None = None

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        return self._batches.shapes

    def forward(self) -> Tensor | tuple[Tensor, ...]:
        if self._ahead is None:
            batch_bytes = 4 * sum(map(prod, self._batches.shapes))
            depth = max(self.prefetch, AHEAD_BYTES // max(1, batch_bytes))
            self._ahead = ReadAhead(partial(_read, self._batches), depth)
        tensors, state = self._ahead.get()
        tops = tuple(tensor.to(self.context.device, non_blocking=True) for tensor in tensors)
        self._state = state
        return tops if len(tops) > 1 else tops[0]

    def state(self) -> dict[str, Any]:
        """The position of the next batch, JSON-able."""
        return dict(self._state)

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that `state` gave: the next forward pass gives what it would have given then."""
        if state.keys() != self._start.keys():
            raise self.error(f"the stored position has {', '.join(state)}, expected {', '.join(self._start)}; was it "
                             "stored for a layer of another type?")
        self.close()
        self._batches.load_state(state)
        self._state = dict(state)

    def rewind(self) -> None:
        """Goes back to the first batch, as a fresh Caffe process starts there."""
        self.load_state(self._start)

    def close(self) -> None:
        """Ends the reading thread; a later forward pass starts another one and goes on."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
            self._batches.load_state(self._state)

    def batch_size(self) -> int:
        """The `batch_size` of the layer's parameters, checked."""
        if self.param.batch_size < 1:
            raise self.error(f"batch_size is {self.param.batch_size}; set it to 1 or more")
        return self.param.batch_size


def draw_seed(layer: Layer) -> int:
    """A seed for what is random in a layer's data, drawn from the net's own generator."""
    return int(torch.randint(2**62, (), generator=layer.context.fill_rng))


def _read(batches: Batches) -> tuple[list[Tensor], dict[str, Any]]:
    return batches.read(), batches.state()


@layer("Data", bottoms=0, tops=(1, 2), param="data_param", source=True)
class Data(ReadingLayer):
    """Images, and labels with a second top, from a database of Datum records (DataParameter, TransformationParameter).

    Records come in the order of their keys' bytes; a batch that reaches the last goes on with the first. `rand_skip` is
    accepted and does nothing, as in Caffe.
    """

    def open(self) -> Batches:
        param = self.param
        self.prefetch = param.prefetch
        batch_size = self.batch_size()
        transformer = Transformer(self.spec.transform_param, self.training, self.where)
        database = open_database(param.source, proto.enum_name(param, "backend"), self.where)
        self.records = database.count()
        items = DatumItems(Cursor(database), transformer.color, self.where)
        seed = draw_seed(self) if transformer.is_random else 0
        return ImageBatches(items, transformer, batch_size, len(self.spec.top) > 1, seed)


@layer("Input", bottoms=0, tops=(1, None), param="input_param", source=True)
class Input(Layer):
    """Blobs that the user fills: a forward pass leaves them as they are (InputParameter)."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        found, tops = len(self.param.shape), len(self.spec.top)
        if found not in (0, 1, tops):
            raise self.error(f"found {found} shape for {tops} tops; give one for all, one a top, or none")

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        given = [tuple(shape.dim) for shape in self.param.shape] or [(0,)]
        return given * len(self.spec.top) if len(given) == 1 else given

    def forward(self) -> Tensor | tuple[Tensor, ...]:
        raise self.error("an Input layer computes nothing; its tops hold what was written into them")


@layer("DummyData", bottoms=0, tops=(1, None), param="dummy_data_param", source=True)
class DummyData(Layer):
    """Blobs from fillers (DummyDataParameter), zeros without one.

    Constants are filled once, so that what the user writes into them stays; all else is drawn anew in every forward
    pass, on the net's device: draw n from a generator seeded with n and a seed of this layer.
    """

    def setup(self, shapes: Sequence[Shape]) -> None:
        found, tops = len(self.param.data_filler), len(self.spec.top)
        if found not in (0, 1, tops):
            raise self.error(f"found {found} data_filler for {tops} tops; give one for all, one a top, or none")
        self._fillers = (list(self.param.data_filler) or [None]) * (tops if found < 2 else 1)
        self._shapes = self._given_shapes()
        self._constants: list[Tensor | None] = [None] * tops
        for i, filler in enumerate(self._fillers):
            if wrong := memory.impossible(self._shapes[i]) or memory.too_much(4 * prod(self._shapes[i])):
                raise self.error(wrong, self.spec.top[i])
            if filler is None or filler.type == "constant":
                value = filler.value if filler else 0.0
                self._constants[i] = torch.full(self._shapes[i], value, device=self.context.device)
        self._rng = torch.Generator(self.context.device)
        self._draw = 0
        self._seed = 0 if all(constant is not None for constant in self._constants) else draw_seed(self)

    def _given_shapes(self) -> list[Shape]:
        param, tops = self.param, len(self.spec.top)
        legacy = {name: list(getattr(param, name)) for name in ("num", "channels", "height", "width")}
        if any(legacy.values()) and len(param.shape):
            raise self.error("both shape and num, channels, height or width are set; set shape only")
        given = legacy if any(legacy.values()) else {"shape": [tuple(shape.dim) for shape in param.shape]}
        for name, values in given.items():
            if len(values) not in (1, tops):
                raise self.error(f"found {len(values)} {name} for {tops} tops; give one for all or one a top")
        columns = [values * tops if len(values) == 1 else values for values in given.values()]
        return columns[0] if len(columns) == 1 else list(zip(*columns))

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        return self._shapes

    def initial(self, top: int) -> Tensor | None:
        """The constant, so that what the user writes into it before the first pass stays too."""
        return self._constants[top]

    def forward(self) -> Tensor | tuple[Tensor, ...]:
        self._rng.manual_seed((self._seed + self._draw) % 2**63)
        self._draw += 1
        tops = tuple(self._fill(i) if constant is None else constant for i, constant in enumerate(self._constants))
        return tops if len(tops) > 1 else tops[0]

    def _fill(self, i: int) -> Tensor:
        tensor = torch.empty(self._shapes[i], device=self.context.device)
        fillers.fill(tensor, self._fillers[i], self._rng, self.where)
        return tensor

    def state(self) -> dict[str, Any]:
        """The position of the next draw, JSON-able."""
        return {"draw": self._draw, "seed": self._seed}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that `state` gave."""
        self._draw, self._seed = state["draw"], state["seed"]

    def rewind(self) -> None:
        """Goes back to the first draw."""
        self._draw = 0
