"""The layers of a net that take part in pruning: every Convolution and InnerProduct, in the order of the net."""

from __future__ import annotations

from math import prod

import numpy as np

from caffe_compat.errors import SolverError
from caffe_compat.layers.base import Layer
from caffe_compat.net import Net

from .groups import Layout, Masks
from .state import LayerState

TYPES = "Convolution", "InnerProduct"
_f = np.float32


def find_layers(net: Net, weight_decay: float) -> list[LayerState]:
    """A `LayerState` for each layer that takes part, with the ratios of the net's prune_param (`ratios.settle` does the
    rest). Raises `SolverError` for a prune_ratio that cannot be followed."""
    owners = {id(parameter.blob): i for i, parameter in enumerate(net.learnable)}
    users = [layer.blobs[0].tensor.data_ptr() for layer in net.layers if layer.blobs]
    states: list[LayerState] = []
    for layer in net.layers:
        param = getattr(layer.spec, "prune_param", None)
        ratio = _f(param.prune_ratio if param else 0)
        if not 0 <= ratio < 1:
            raise SolverError(f"{layer.where}: prune_ratio is {ratio:g}, expected 0 <= prune_ratio < 1")
        owner = owners.get(id(layer.blobs[0])) if layer.type in TYPES and layer.blobs else None
        if owner is None or net.learnable[owner].layer_name != layer.name:
            if ratio > 0:
                raise SolverError(f"{layer.where}: {_refusal(layer)}, so prune_ratio {ratio:g} cannot be followed; set it to 0")
            continue
        weight = layer.blobs[0]
        layout = _layout(layer)
        top = net.blobs[net.top_names[layer.name][0]].shape
        state = LayerState(
            name=layer.name, where=layer.where, kind=layer.type, index=len(states), weight=weight, learnable=owner,
            layout=layout, outputs=prod(top[2:]) if layer.type == "Convolution" else 1, ratio=ratio,
            ratio_step=_f(param.prune_ratio_step if param else 0), update=param.IF_update_row_col if param else True,
            decays=bool(weight_decay * net.learnable[owner].decay_mult), shared=users.count(weight.tensor.data_ptr()) > 1,
            explicit=bool(param and param.HasField("prune_ratio")), masks=Masks(layout, net.device))
        states.append(state)
    return states


def _layout(layer: Layer) -> Layout:
    shape = layer.blobs[0].shape
    if layer.type == "Convolution":
        return Layout(shape, group=layer.param.group)
    return Layout(shape, transposed=layer.param.transpose)


def _refusal(layer: Layer) -> str:
    if layer.type not in TYPES:
        return f"layers of type {layer.type} are not pruned, only {' and '.join(TYPES)}"
    return "this layer uses the weights of another one, which is the one to prune"
