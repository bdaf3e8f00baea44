"""Only a caffemodel is left: the deploy prototxt that the layer parameters in it give, and what had to be assumed.

Caffe writes each layer's settings, bottoms and tops beside its blobs, so all is there but what a net that is to be
deployed has in the place of its data and losses. Files that other programs wrote may lack more.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

from .. import proto
from ..errors import CaffeError
from ..layers import LAYERS
from ..net import Net
from ..proto import Document, replacing
from ..trust import confined_to
from ..weights import STRICT, copy_weights, read_weights

#: Image sizes of the nets that most files hold, the likeliest first; and how large others may be.
_SIZES = 224, 227, 32, 28, 299, 300, 256, 321, 512, 48, 24, 12, 96, 112, 128, 64
_LARGEST = 1024
_IN_PLACE = {"ReLU", "PReLU", "Dropout", "BatchNorm", "Scale", "Bias", "Sigmoid", "TanH", "ELU"}
#: Layers of training and testing alone, beside the losses.
_TRAINING = {"Accuracy", "Silence", "HDF5Output"}


@dataclass
class Guess:
    """A deploy net (`message`, a NetParameter without blobs) and `notes`, a line for each thing that was assumed."""

    message: Any
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The prototxt, the notes in front as comments."""
        return "".join(f"# {line}\n" for note in self.notes for line in note.splitlines()) + proto.dump_text(self.message)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the prototxt, whole or not at all."""
        with replacing(path) as temporary:
            temporary.write_text(self.text(), encoding="utf-8")


def guess_prototxt(source: str | os.PathLike[str] | Document, input_shape: tuple[int, ...] | None = None) -> Guess:
    """The best deploy net for the weights in a caffemodel (path or Document).

    `input_shape` is the shape of the input if it is known. Raises `CaffeError` for a file that holds blobs alone, as
    HDF5 ones do: nothing in them tells what the layers are.
    """
    document = source if isinstance(source, Document) else read_weights(source)
    if not any(layer.type for layer in document.message.layer):
        raise CaffeError(f"{document.path}: holds names and blobs of layers, but not what layers they are, so there is "
                         "nothing to guess from (`caffe-compat show` lists them)")
    return _Guesser(document, input_shape).guess()


class _Guesser:
    """The steps from a caffemodel's layers to a deploy net; each notes what it assumes."""

    def __init__(self, document: Document, input_shape: tuple[int, ...] | None) -> None:
        self.document = document
        self.shapes = {i: [document.arrays[key].shape if (key := ("layer", i, "blobs", j)) in document.arrays else ()
                           for j in range(len(layer.blobs))] for i, layer in enumerate(document.message.layer)}
        self.input_shape = input_shape
        self.notes = [f"Guessed from {os.path.basename(document.path or 'weights')}.", *document.notes]
        self.layers: list[tuple[Any, list[tuple[int, ...]]]] = []
        self.crop = 0
        self._reason = ""

    def guess(self) -> Guess:
        for i, layer in enumerate(self.document.message.layer):
            copy = type(layer)()
            copy.CopyFrom(layer)
            for name in ("blobs", "phase", "include", "exclude", "loss_weight", "propagate_down"):
                copy.ClearField(name)
            self.layers.append((copy, self.shapes[i]))
        self._chain()
        self._join_splits()
        for layer, shapes in self.layers:
            self._complete(layer, shapes)
        self._drop_training()
        self._add_inputs()
        message = type(self.document.message)(name=self.document.message.name)
        message.layer.extend(layer for layer, _ in self.layers)
        guess = Guess(message, self.notes)
        self.notes.append(self._checked(message))
        return guess

    def _chain(self) -> None:
        """Bottoms and tops where the file has none at all: one layer after the other."""
        if any(len(layer.bottom) or len(layer.top) for layer, _ in self.layers):
            return
        self.notes.append("The file has no bottoms and tops: assumed one layer after the other, in the file's order.")
        top = "data"
        for layer, _ in self.layers:
            if layer.type not in LAYERS or not LAYERS.get(layer.type).is_source:
                layer.bottom.append(top)
                top = top if layer.type in _IN_PLACE and top != "data" else layer.name
            layer.top.append(top)

    def _join_splits(self) -> None:
        """Takes out the Split layers that Caffe puts in by itself: it will again."""
        origin: dict[str, str] = {}
        kept = []
        for layer, shapes in self.layers:
            for k, name in enumerate(layer.bottom):
                layer.bottom[k] = origin.get(name, name)
            if layer.type == "Split" and layer.name.endswith("_split"):
                origin.update((name, layer.bottom[0]) for name in layer.top)
            else:
                kept.append((layer, shapes))
        self.layers = kept

    def _complete(self, layer: Any, shapes: list[tuple[int, ...]]) -> None:
        """The sizes that the blobs tell, where the settings do not."""
        if not shapes or not shapes[0] or layer.type not in ("Convolution", "Deconvolution", "InnerProduct"):
            return
        shape = shapes[0]
        param = layer.inner_product_param if layer.type == "InnerProduct" else layer.convolution_param
        if param.num_output:
            return
        if layer.type == "InnerProduct":
            param.num_output = shape[-1] if param.transpose else shape[-2] if len(shape) > 1 else shape[0]
        else:
            param.num_output = shape[0] if layer.type == "Convolution" else shape[1] * param.group
            if not param.kernel_size and not param.kernel_h:
                param.kernel_size.extend(shape[2:] if len(set(shape[2:])) > 1 else shape[2:3])
        param.bias_term = len(shapes) > 1
        self.notes.append(f"{layer.name}: has no settings; its sizes are those of its blobs, stride 1 and pad 0 assumed.")

    def _drop_training(self) -> None:
        """Takes out data, losses and measures; SoftmaxWithLoss leaves a Softmax."""
        kept, dropped, gone = [], [], set()
        for layer, shapes in self.layers:
            known = LAYERS.get(layer.type) if layer.type in LAYERS else None
            if known is not None and known.is_source and layer.type not in ("Input", "Parameter"):
                self._note_data(layer)
                dropped.append(layer.name)
            elif layer.type == "SoftmaxWithLoss":
                dropped.append(f"{layer.name} (a Softmax takes its place)")
                kept.append((self._softmax(layer), shapes))
            elif (known is not None and known.is_loss) or layer.type in _TRAINING or set(layer.bottom) & gone:
                dropped.append(layer.name)
                gone.update(set(layer.top) - set(layer.bottom))
            else:
                kept.append((layer, shapes))
        useless = self._without_use(kept)
        dropped += [layer.name for layer, _ in useless]
        kept = [entry for entry in kept if entry not in useless]
        if dropped:
            self.notes.append(f"Left out, as they serve training alone: {', '.join(dropped)}.")
        self.layers = kept

    def _without_use(self, kept: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        """Of the layers `kept` those that work on labels: no weights before them, and nobody left to read them."""
        learned: set[str] = set()
        for layer, shapes in kept:
            if shapes or set(layer.bottom) & learned:
                learned.update(layer.top)
        used_before = {name for layer, _ in self.layers for name in layer.bottom}
        useless: list[tuple[Any, Any]] = []
        read: set[str] = set()
        for entry in reversed(kept):
            layer = entry[0]
            if layer.type != "Input" and set(layer.top) <= used_before - read - learned and layer.top:
                useless.append(entry)
            else:
                read.update(layer.bottom)
        return useless[::-1]

    def _softmax(self, loss: Any) -> Any:
        names = {layer.name for layer, _ in self.layers} | {name for layer, _ in self.layers for name in layer.top}
        name = next(name for name in ("prob", f"{loss.name}_prob", f"{loss.name}_softmax") if name not in names
                    and name not in {layer.name for layer, _ in self.layers})
        softmax = type(loss)(name=name, type="Softmax", bottom=[loss.bottom[0]], top=[name])
        if loss.HasField("softmax_param"):
            softmax.softmax_param.CopyFrom(loss.softmax_param)
        return softmax

    def _note_data(self, layer: Any) -> None:
        transform = layer.transform_param
        self.crop = self.crop or transform.crop_size
        told = [f"{field.name} {value if isinstance(value, (int, float, str)) else list(value)}"
                for field, value in transform.ListFields() if field.name in ("scale", "crop_size", "mean_file", "mean_value")]
        if told:
            self.notes.append(f"{layer.name} prepared its data: {', '.join(told)}; do the same to the input.")

    def _add_inputs(self) -> None:
        """An Input layer for what nobody makes."""
        made: set[str] = set()
        needed: dict[str, tuple[Any, list[tuple[int, ...]]]] = {}
        for layer, shapes in self.layers:
            for name in layer.bottom:
                if name not in made:
                    needed.setdefault(name, (layer, shapes))
            made.update(layer.top)
        for name, (layer, shapes) in reversed(needed.items()):
            entry = type(layer)(name=f"{name}_input" if name in {other.name for other, _ in self.layers} else name,
                                type="Input", top=[name])
            shape = self.input_shape or self._shape(name, layer, shapes)
            entry.input_param.shape.add().dim.extend(shape)
            self.layers.insert(0, (entry, []))
            if self.input_shape is None:
                self.notes.append(f"The input {name} is {' x '.join(map(str, shape))}: {self._reason}.")

    def _shape(self, name: str, first: Any, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
        """The shape of an input from the layer that reads it, and from the first InnerProduct that it must fit."""
        if first.type == "InnerProduct" and shapes and shapes[0]:
            self._reason = f"as many values as {first.name} takes"
            return (1, shapes[0][0 if first.inner_product_param.transpose else -1])
        channels = 3
        conv = next(((layer, blobs) for layer, blobs in self.layers if layer.type == "Convolution" and blobs), None)
        if conv is not None:
            channels = conv[1][0][1] * max(conv[0].convolution_param.group, 1)
        if self.crop:
            self._reason = f"the channels that {conv[0].name if conv else 'it'} takes, and the crop_size of the data"
            return (1, channels, self.crop, self.crop)
        size = self._size_that_fits(name, channels)
        if not size:
            self._reason = "nothing tells its size, which is assumed"
        return (1, channels, size or _SIZES[0], size or _SIZES[0])

    def _size_that_fits(self, name: str, channels: int) -> int:
        """The first image size whose features are as many as the first InnerProduct takes; 0 if none is."""
        position = next((k for k, (layer, blobs) in enumerate(self.layers) if layer.type == "InnerProduct" and blobs), None)
        if position is None:
            return 0
        first, blobs = self.layers[position]
        wanted = prod(blobs[0]) // max(first.inner_product_param.num_output, 1)
        self._reason = f"the first size that gives {first.name} the {wanted} values it takes"

        def features(size: int) -> int:
            return self._features(name, (1, channels, size, size), position)

        for size in _SIZES:
            if features(size) == wanted:
                return size
        size = bisect_left(range(_LARGEST), wanted, key=features)  # larger images have no fewer features
        return size if features(size) == wanted else 0

    def _features(self, name: str, shape: tuple[int, ...], position: int) -> int:
        """How many values an image the InnerProduct at `position` would get; 0 where the net cannot be."""
        message = type(self.document.message)()
        message.layer.add(name="__input__", type="Input", top=[name]).input_param.shape.add().dim.extend(shape)
        message.layer.extend(_without_fillers(self.layers[:position]))
        try:
            with confined_to(self.document.path):
                net = Net(Document(message, self.document.dialect))
        except CaffeError:
            return 0
        blob = net.blobs.get(self.layers[position][0].bottom[0])
        return blob.count // shape[0] if blob is not None else 0

    def _checked(self, message: Any) -> str:
        """Whether the guess is a net that the weights fit."""
        try:
            with confined_to(self.document.path):
                net = Net(proto.parse_text(proto.dump_text(message), "NetParameter", "the guess", self.document.dialect))
                copy_weights(net, self.document, STRICT)
        except CaffeError as error:
            return f"Not right yet: {error}"
        return "Checked: the net can be built, and all its weights are in the file."


def _without_fillers(layers: list[tuple[Any, Any]]) -> Iterator[Any]:
    """The layers, for looking at shapes alone: random weights would take time."""
    for layer, _ in layers:
        copy = type(layer)()
        copy.CopyFrom(layer)
        for name in ("convolution_param", "inner_product_param"):
            if copy.HasField(name):
                getattr(copy, name).ClearField("weight_filler")
                getattr(copy, name).ClearField("bias_filler")
        yield copy
