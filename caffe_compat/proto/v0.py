"""V0, the oldest form of a net: `layers { layer { type: "conv" ... } }`, and its padding layers."""

from __future__ import annotations

from typing import Any

from ..errors import ParseError, did_you_mean
from .dialect import is_repeated
from .document import Document

#: V0LayerParameter.type -> V1LayerParameter.LayerType
V0_TYPES = {
    "accuracy": "ACCURACY", "bnll": "BNLL", "concat": "CONCAT", "conv": "CONVOLUTION", "data": "DATA",
    "dropout": "DROPOUT", "euclidean_loss": "EUCLIDEAN_LOSS", "flatten": "FLATTEN", "hdf5_data": "HDF5_DATA",
    "hdf5_output": "HDF5_OUTPUT", "im2col": "IM2COL", "images": "IMAGE_DATA", "infogain_loss": "INFOGAIN_LOSS",
    "innerproduct": "INNER_PRODUCT", "lrn": "LRN", "multinomial_logistic_loss": "MULTINOMIAL_LOGISTIC_LOSS",
    "pool": "POOLING", "relu": "RELU", "sigmoid": "SIGMOID", "softmax": "SOFTMAX", "softmax_loss": "SOFTMAX_LOSS",
    "split": "SPLIT", "tanh": "TANH", "window_data": "WINDOW_DATA",
}
#: V0LayerParameter field -> by V0 type ("*": any) the field that it became.
_FIELDS = {
    "num_output": {"conv": "convolution_param.num_output", "innerproduct": "inner_product_param.num_output"},
    "biasterm": {"conv": "convolution_param.bias_term", "innerproduct": "inner_product_param.bias_term"},
    "weight_filler": {"conv": "convolution_param.weight_filler", "innerproduct": "inner_product_param.weight_filler"},
    "bias_filler": {"conv": "convolution_param.bias_filler", "innerproduct": "inner_product_param.bias_filler"},
    "pad": {"conv": "convolution_param.pad", "pool": "pooling_param.pad"},
    "kernelsize": {"conv": "convolution_param.kernel_size", "pool": "pooling_param.kernel_size"},
    "group": {"conv": "convolution_param.group"},
    "stride": {"conv": "convolution_param.stride", "pool": "pooling_param.stride"},
    "pool": {"pool": "pooling_param.pool"},
    "dropout_ratio": {"dropout": "dropout_param.dropout_ratio"},
    "local_size": {"lrn": "lrn_param.local_size"},
    "alpha": {"lrn": "lrn_param.alpha"},
    "beta": {"lrn": "lrn_param.beta"},
    "k": {"lrn": "lrn_param.k"},
    "source": {"data": "data_param.source", "hdf5_data": "hdf5_data_param.source", "images": "image_data_param.source",
               "window_data": "window_data_param.source", "infogain_loss": "infogain_loss_param.source"},
    "batchsize": {"data": "data_param.batch_size", "hdf5_data": "hdf5_data_param.batch_size",
                  "images": "image_data_param.batch_size", "window_data": "window_data_param.batch_size"},
    "scale": {"*": "transform_param.scale"},
    "meanfile": {"*": "transform_param.mean_file"},
    "cropsize": {"*": "transform_param.crop_size"},
    "mirror": {"*": "transform_param.mirror"},
    "rand_skip": {"data": "data_param.rand_skip", "images": "image_data_param.rand_skip"},
    "shuffle_images": {"images": "image_data_param.shuffle"},
    "new_height": {"images": "image_data_param.new_height"},
    "new_width": {"images": "image_data_param.new_width"},
    "concat_dim": {"concat": "concat_param.concat_dim"},
    "det_fg_threshold": {"window_data": "window_data_param.fg_threshold"},
    "det_bg_threshold": {"window_data": "window_data_param.bg_threshold"},
    "det_fg_fraction": {"window_data": "window_data_param.fg_fraction"},
    "det_context_pad": {"window_data": "window_data_param.context_pad"},
    "det_crop_mode": {"window_data": "window_data_param.crop_mode"},
    "hdf5_output_param": {"hdf5_output": "hdf5_output_param"},
    "name": {"*": "name"},
    "blobs": {"*": "blobs"},
    "blobs_lr": {"*": "blobs_lr"},
    "weight_decay": {"*": "weight_decay"},
}
_NET_FIELDS = ("name", "layers", "input", "input_dim", "force_backward")


def from_v0(document: Document) -> tuple[list[tuple], list[str]]:
    """Rewrites the V0 layers of a NetParameter as V1 layers, padding layers merged into what follows them.

    Returns each new layer's former element path, `("layers", 3, "layer")`, and the settings that mean nothing to their
    layer's type. All that is left out is noted.
    """
    message, lost = document.message, []
    document.notes.append("upgraded V0 layers (layers { layer { ... } })")
    kept = _merge_padding(document)
    for field, _ in message.ListFields():
        if field.name not in _NET_FIELDS:
            document.notes.append(f"{field.name} was left out: V0 nets have none")
            message.ClearField(field.name)
    layers = []
    for index, old in kept:
        new = type(old)()
        lost += _from_v0_layer(old, new, document, index)
        layers.append(new)
    del message.layers[:]
    message.layers.extend(layers)
    document.notes += lost
    return [("layers", index, "layer") for index, _ in kept], lost


def _merge_padding(document: Document) -> list[tuple[int, Any]]:
    """The layers that are not padding, with their positions; those fed by padding take over its pad and its bottom."""
    layers = [type(layer).FromString(layer.SerializePartialToString()) for layer in document.message.layers]
    producers: dict[str, int] = {}
    kept = []
    for index, layer in enumerate(layers):
        where = document.path, document.lines.get(("layers", index))
        for position, blob in enumerate(layer.bottom):
            source = layers[producers[blob]] if blob in producers else None
            if source is None or source.layer.type != "padding":
                continue
            if layer.layer.type not in ("conv", "pool"):
                raise ParseError(f'padding layer "{source.layer.name}" feeds layer "{layer.layer.name}" of type '
                                 f"{layer.layer.type}; only conv and pool layers can take over its pad", *where)
            if (len(layer.bottom), len(source.bottom), len(source.top)) != (1, 1, 1):
                raise ParseError(f'padding layer "{source.layer.name}" and layer "{layer.layer.name}", which it feeds, '
                                 f"must have one bottom each, and the padding one top", *where)
            layer.layer.pad = source.layer.pad
            layer.bottom[position] = source.bottom[0]
        producers.update((blob, index) for blob in layer.top)
        if layer.layer.type != "padding":
            kept.append((index, layer))
    return kept


def _from_v0_layer(old: Any, new: Any, document: Document, index: int) -> list[str]:
    """Fills the V1LayerParameter `new` from the V0 form in `old`; returns what means nothing to the layer's type."""
    lost = []
    new.bottom.extend(old.bottom)
    new.top.extend(old.top)
    name, kind = old.layer.name or old.name, old.layer.type
    for field, _ in old.ListFields():
        if field.name not in ("bottom", "top", "layer"):
            document.notes.append(f'layer "{name}": {field.name} was left out: V0 nets have no such field there')
    for field, value in old.layer.ListFields():
        targets = _FIELDS.get(field.name, {})
        target = targets.get(kind) or targets.get("*")
        if field.name == "type":
            new.type = new.LayerType.Value(_v1_type(kind, name, document, index))
        elif target is None:
            lost.append(f'layer "{name}": {field.name} was left out: it means nothing to the type {kind}')
        else:
            _set(new, target, value)
    return lost


def _v1_type(kind: str, name: str, document: Document, index: int) -> str:
    if kind not in V0_TYPES:
        raise ParseError(f'layer "{name}": unknown V0 layer type "{kind}"{did_you_mean(kind, V0_TYPES)}; '
                         f"known: {', '.join(sorted(V0_TYPES))}", document.path, document.lines.get(("layers", index)))
    return V0_TYPES[kind]


def _set(message: Any, target: str, value: Any) -> None:
    """Sets the field `target`, of the message or of one in it ("pooling_param.pad"); a single value may fill a list."""
    *outer, name = target.split(".")
    message = getattr(message, outer[0]) if outer else message
    field = message.DESCRIPTOR.fields_by_name[name]
    if is_repeated(field):
        getattr(message, name).extend(value if hasattr(value, "__len__") else [value])
    elif field.message_type is not None:
        getattr(message, name).CopyFrom(value)
    else:
        setattr(message, name, value)
