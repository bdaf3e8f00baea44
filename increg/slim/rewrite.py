"""A plan's edits in a prototxt: smaller layers of the same names, and Slice layers where kernels were cut unevenly."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from caffe_compat import proto
from caffe_compat.errors import NetError, ParseError
from caffe_compat.proto import Document

from .plan import Edit

#: Layers that have parameters for what they read; one that was not looked at when the plan was made cannot be left as it is.
_WEIGHTED = frozenset(("BatchNorm", "Bias", "Convolution", "Deconvolution", "Embed", "InnerProduct", "LSTM", "PReLU", "Python",
                       "RNN", "Recurrent", "Scale"))


def rewrite(document: Document, edits: Mapping[str, Edit], known: Collection[str]) -> Document:
    """The net of `document` with `edits` made to the layers of their names, in BVLC Caffe's dialect where that can say it.

    `known` are the layers of the net that the edits were made for. Raises `NetError` for a document that lacks one of
    those edited, has it with other settings, or has layers with parameters that are not known.
    """
    message, missing = type(document.message)(), set(edits)
    names = {blob for layer in document.message.layer for blob in (*layer.bottom, *layer.top)}
    message.CopyFrom(document.message)
    del message.layer[:]
    for original in document.message.layer:
        spec = type(original)()
        spec.CopyFrom(original)
        before, after = [], []
        if "prune_param" in spec.DESCRIPTOR.fields_by_name:
            spec.ClearField("prune_param")
        edit = edits.get(spec.name)
        if edit is not None:
            missing.discard(spec.name)
            _check(document, spec, edit)
            _edit(spec, edit)
            if edit.crops:
                before, after = _cuts(spec, edit, names)
        message.layer.extend([*before, spec, *after])
    strange = [spec.name for spec in document.message.layer if spec.type in _WEIGHTED and spec.name not in known]
    if strange:
        raise NetError(f"{document.path}: {', '.join(strange)} has parameters, but was not part of the net that was slimmed "
                       "(in the TEST phase): what it reads may be gone. Slim a definition with all such layers, or take them "
                       "out")
    if missing:
        raise NetError(f"{document.path}: has no layer {', '.join(sorted(missing))}, which the slim net changes; is it a "
                       "definition of the same net?")
    return _plain(Document(message, document.dialect, document.path))


def _check(document: Document, spec: Any, edit: Edit) -> None:
    settings = _settings(spec)
    if edit.rows and settings is not None and settings.num_output != edit.rows[0]:
        raise NetError(f"{document.path}: {spec.name} has num_output {settings.num_output}, expected {edit.rows[0]}; is it a "
                       "definition of the same net?")


def _settings(spec: Any) -> Any:
    if spec.type in ("Convolution", "Deconvolution"):
        return spec.convolution_param
    return spec.inner_product_param if spec.type == "InnerProduct" else None


def _edit(spec: Any, edit: Edit) -> None:
    settings = _settings(spec)
    if edit.rows:
        settings.num_output = edit.rows[1]
    if edit.group is not None:
        settings.group = edit.group
    if edit.bias:
        settings.bias_term = True
    if edit.crops:
        _set_sizes(settings, "kernel", "kernel_size", [crop.kernel for crop in edit.crops])
        _set_sizes(settings, "pad", "pad", [crop.pad for crop in edit.crops])
    if edit.slice_points is not None:
        spec.slice_param.slice_point[:] = edit.slice_points
    if edit.dim is not None:
        index, size = edit.dim
        spec.reshape_param.shape.dim[index] = size


def _set_sizes(settings: Any, name: str, repeated: str, sizes: Sequence[int]) -> None:
    for field in (repeated, f"{name}_h", f"{name}_w"):
        settings.ClearField(field)
    if len(set(sizes)) == 1:
        getattr(settings, repeated).append(sizes[0])
    elif len(sizes) == 2:
        for side, size in zip("hw", sizes):
            setattr(settings, f"{name}_{side}", size)
    else:
        getattr(settings, repeated).extend(sizes)


def _cuts(spec: Any, edit: Edit, names: set[str]) -> tuple[list[Any], list[Any]]:
    """The layers to put before and behind a Convolution; its bottom or top is renamed to match."""
    before, after = [], []
    if any(any(crop.inputs) for crop in edit.crops):
        source = spec.bottom[0]
        spec.bottom[0] = _new_name(f"{source}_for_{spec.name}", names)
        before = _slices(spec, source, spec.bottom[0], [(crop.inputs, crop.read) for crop in edit.crops], names)
    if any(any(crop.outputs) for crop in edit.crops):
        target = spec.top[0]
        spec.top[0] = _new_name(f"{target}_uncut", names)
        after = _slices(spec, spec.top[0], target, [(crop.outputs, crop.made) for crop in edit.crops], names)
    return before, after


def _slices(spec: Any, source: str, target: str, cuts: Iterable[tuple[tuple[int, int], int]], names: set[str]) -> list[Any]:
    """Slice layers that cut (front, back) pixels off each spatial axis of a length, and a Silence for what they cut."""
    layers, waste = [], []
    todo = [(axis, front, back, size) for axis, ((front, back), size) in enumerate(cuts, 2) if front or back]
    for k, (axis, front, back, size) in enumerate(todo):
        top = target if k == len(todo) - 1 else _new_name(f"{source}_axis{axis}", names)
        layer = type(spec)(name=_new_name(f"{spec.name}_cut_axis{axis}", names), type="Slice", bottom=[source])
        layer.slice_param.axis = axis
        for cut, point, side in ((front, front, "front"), (back, size - back, "back")):
            if cut:
                waste.append(_new_name(f"{target}_{side}{axis}", names))
                layer.slice_param.slice_point.append(point)
        layer.top.extend([*waste[-2:-1], top, waste[-1]] if front and back else [waste[-1], top] if front else [top, waste[-1]])
        layers.append(layer)
        source = top
    layers.append(type(spec)(name=_new_name(f"{spec.name}_waste", names), type="Silence", bottom=waste))
    for layer in layers:
        layer.include.extend(spec.include)
        layer.exclude.extend(spec.exclude)
    return layers


def _new_name(wish: str, names: set[str]) -> str:
    name = next(name for k in range(len(names) + 1) if (name := f"{wish}{k or ''}") not in names)
    names.add(name)
    return name


def _plain(document: Document) -> Document:
    """In the dialect of BVLC Caffe, if that knows all that the net says."""
    if document.dialect is proto.BVLC:
        return document
    try:
        return proto.parse_text(proto.dump_text(document.message), "NetParameter", document.path, proto.BVLC)
    except ParseError:
        return document
