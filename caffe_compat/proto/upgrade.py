"""Old definitions in today's form, as Caffe upgrades them: V0 and V1 layers, `input` fields, data transformations on
data layers, BatchNorm multipliers, the solver's enum type.

What was done is added to the document's `notes`. Settings that mean nothing to their layer's type are left out, as in
Caffe, which counts that as a failure of its upgrade tools: those are returned too.
"""

from __future__ import annotations

from typing import Any

from ..errors import ParseError, did_you_mean
from .dialect import is_repeated
from .document import Document
from .v0 import from_v0

#: V1LayerParameter.LayerType -> LayerParameter.type
V1_TYPES = {
    "NONE": "", "ABSVAL": "AbsVal", "ACCURACY": "Accuracy", "ARGMAX": "ArgMax", "BNLL": "BNLL", "CONCAT": "Concat",
    "CONTRASTIVE_LOSS": "ContrastiveLoss", "CONVOLUTION": "Convolution", "DATA": "Data",
    "DECONVOLUTION": "Deconvolution", "DROPOUT": "Dropout", "DUMMY_DATA": "DummyData", "ELTWISE": "Eltwise",
    "EUCLIDEAN_LOSS": "EuclideanLoss", "EXP": "Exp", "FLATTEN": "Flatten", "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output", "HINGE_LOSS": "HingeLoss", "IM2COL": "Im2col", "IMAGE_DATA": "ImageData",
    "INFOGAIN_LOSS": "InfogainLoss", "INNER_PRODUCT": "InnerProduct", "LRN": "LRN", "MEMORY_DATA": "MemoryData",
    "MULTINOMIAL_LOGISTIC_LOSS": "MultinomialLogisticLoss", "MVN": "MVN", "POOLING": "Pooling", "POWER": "Power",
    "RELU": "ReLU", "SIGMOID": "Sigmoid", "SIGMOID_CROSS_ENTROPY_LOSS": "SigmoidCrossEntropyLoss",
    "SILENCE": "Silence", "SLICE": "Slice", "SOFTMAX": "Softmax", "SOFTMAX_LOSS": "SoftmaxWithLoss", "SPLIT": "Split",
    "TANH": "TanH", "THRESHOLD": "Threshold", "WINDOW_DATA": "WindowData",
}
#: SolverParameter.SolverType -> SolverParameter.type
SOLVER_TYPES = {
    "SGD": "SGD", "NESTEROV": "Nesterov", "ADAGRAD": "AdaGrad", "RMSPROP": "RMSProp", "ADADELTA": "AdaDelta",
    "ADAM": "Adam",
}
_DATA_LAYERS = {"DATA": "data_param", "IMAGE_DATA": "image_data_param", "WINDOW_DATA": "window_data_param"}
_TRANSFORM_FIELDS = ("scale", "mean_file", "crop_size", "mirror")


def upgrade(document: Document) -> list[str]:
    """Brings the document's message to today's form, in place, with its `lines`, `arrays` and `diffs`.

    Returns the settings that were left out as meaningless, a line each. No notes: the file was up to date.
    Raises `ParseError` for a definition that contradicts itself.
    """
    kind = document.message.DESCRIPTOR.name
    if kind == "NetParameter":
        return _upgrade_net(document)
    if kind == "SolverParameter":
        return _upgrade_solver(document)
    return []


# -- nets -----------------------------------------------------------------------------------------------------------


def _upgrade_net(document: Document) -> list[str]:
    message, lost = document.message, []
    # Where each of the new layers was: ("layer", 3), ("layers", 3), ("layers", 3, "layer"); the Input layer nowhere.
    origins: list[tuple] = [("layer", index) for index in range(len(message.layer))]
    if len(message.layers):
        if len(message.layer):
            raise ParseError(f'this net mixes {len(message.layer)} "layer" and {len(message.layers)} of the older '
                             '"layers", of which one kind would be lost: rewrite one kind as the other', document.path)
        if any(layer.HasField("layer") for layer in message.layers):
            origins, lost = from_v0(document)
        else:
            origins = [("layers", index) for index in range(len(message.layers))]
        _move_transformations(document)
        for index, old in enumerate(message.layers):
            _from_v1(old, message.layer.add(), document, index)
        message.ClearField("layers")
        document.notes.append("upgraded layers { ... } with enum types to layer { ... }")
    if len(message.input):
        origins = _upgrade_input(document) + origins
    if any(old != ("layer", new) for new, old in enumerate(origins)):
        _move(document, origins)
    _upgrade_batch_norm(document)
    return lost


def _from_v1(old: Any, new: Any, document: Document, index: int) -> None:
    """Fills the LayerParameter `new` from the V1LayerParameter `old`."""
    types = old.DESCRIPTOR.fields_by_name["type"].enum_type.values_by_number
    fields = new.DESCRIPTOR.fields_by_name
    for field, value in old.ListFields():
        if field.name == "type":
            name = types[value].name
            if name not in V1_TYPES:
                raise ParseError(f'layer "{old.name}": no layer type of today is known for {name}', document.path,
                                 document.lines.get(("layers", index)))
            new.type = V1_TYPES[name]
        elif field.name in ("name", "bottom", "top", "include", "exclude", "blobs", "loss_weight"):
            _assign(new, field.name, value)
        elif field.message_type is not None and field.name in fields:
            getattr(new, field.name).CopyFrom(value)
    for old_name, new_name in (("param", "name"), ("blob_share_mode", "share_mode"), ("blobs_lr", "lr_mult"),
                               ("weight_decay", "decay_mult")):
        for position, value in enumerate(getattr(old, old_name)):
            while len(new.param) <= position:
                new.param.add()
            setattr(new.param[position], new_name, value)


def _assign(message: Any, name: str, value: Any) -> None:
    if is_repeated(message.DESCRIPTOR.fields_by_name[name]):
        getattr(message, name).extend(value)
    else:
        setattr(message, name, value)


def _move_transformations(document: Document) -> None:
    """scale, mean_file, crop_size and mirror of V1 data layers into transform_param; if one needs it, all get one."""
    found = []
    for layer in document.message.layers:
        name = layer.DESCRIPTOR.fields_by_name["type"].enum_type.values_by_number[layer.type].name
        if name in _DATA_LAYERS:
            found.append((layer, _DATA_LAYERS[name]))
    if not any(getattr(layer, param).HasField(field) for layer, param in found for field in _TRANSFORM_FIELDS):
        return
    for layer, name in found:
        param, transform = getattr(layer, name), layer.transform_param
        param.SetInParent()
        transform.SetInParent()
        for field in _TRANSFORM_FIELDS:
            if param.HasField(field):
                setattr(transform, field, getattr(param, field))
                param.ClearField(field)
    document.notes.append("moved scale, mean_file, crop_size and mirror of the data layers to transform_param")


def _upgrade_input(document: Document) -> list[tuple]:
    """`input` with `input_shape` or `input_dim` as an Input layer in front; returns the origins of what is added."""
    message = document.message
    inputs, shapes, dims = list(message.input), list(message.input_shape), list(message.input_dim)
    line = document.lines.get(("input", 0))
    if shapes and len(shapes) != len(inputs):
        raise ParseError(f"found {len(inputs)} input and {len(shapes)} input_shape; give each input one",
                         document.path, line)
    if dims and not shapes and len(dims) != 4 * len(inputs):
        raise ParseError(f"found {len(inputs)} input and {len(dims)} input_dim; give each input four",
                         document.path, line)
    added = []
    if shapes or dims:
        layer = type(message)().layer.add(name="input", type="Input", top=inputs)
        for index in range(len(inputs)):
            dim = shapes[index].dim if shapes else dims[4 * index:4 * index + 4]
            layer.input_param.shape.add().dim.extend(dim)
        message.layer.insert(0, layer)
        added.append(("input", 0))
    for field in ("input", "input_shape", "input_dim"):
        message.ClearField(field)
    document.notes.append("upgraded input fields to an Input layer")
    return added


def _upgrade_batch_norm(document: Document) -> None:
    layers = [layer for layer in document.message.layer if layer.type == "BatchNorm" and len(layer.param) == 3]
    changed = False
    for layer in layers:
        for spec in layer.param:
            changed |= spec.lr_mult != 0
            spec.lr_mult = spec.decay_mult = 0
    if changed:
        document.notes.append("set lr_mult and decay_mult of BatchNorm's statistics to 0: they are not learned")


def _move(document: Document, origins: list[tuple]) -> None:
    """Renames the keys of lines, arrays and diffs after the layers have moved from `origins`."""
    moved = {old: ("layer", new) for new, old in enumerate(origins)}
    for values in (document.arrays, document.diffs):
        kept = [(moved[key[:-2]] + key[-2:], value) for key, value in values.items() if key[:-2] in moved]
        values.clear()
        values.update(kept)
    lines = {moved[old]: document.lines[old[:2]] for old in origins if old[:2] in document.lines}
    for key in [key for key in document.lines if key[0] in ("layer", "layers", "input", "input_shape", "input_dim")]:
        del document.lines[key]
    document.lines.update(lines)


# -- solvers --------------------------------------------------------------------------------------------------------


def _upgrade_solver(document: Document) -> list[str]:
    """`solver_type` (an enum) as `type` (a name); embedded nets are upgraded too."""
    message, lost = document.message, []
    if message.HasField("solver_type"):
        line = document.lines.get(("solver_type",))
        if message.HasField("type"):
            raise ParseError(f"both solver_type and type (line {document.lines.get(('type',))}) are given; "
                             "solver_type is the older form of type: keep one", document.path, line)
        name = message.DESCRIPTOR.fields_by_name["solver_type"].enum_type.values_by_number[message.solver_type].name
        if name not in SOLVER_TYPES:
            raise ParseError(f"no solver type of today is known for {name}{did_you_mean(name, SOLVER_TYPES)}",
                             document.path, line)
        message.type = SOLVER_TYPES[name]
        message.ClearField("solver_type")
        document.notes.append(f'upgraded solver_type {name} to type: "{message.type}"')
    nets = [getattr(message, name) for name in ("net_param", "train_net_param") if message.HasField(name)]
    for net in nets + list(message.test_net_param):
        inner = Document(net, document.dialect, document.path)
        lost += _upgrade_net(inner)
        document.notes += inner.notes
    return lost
