"""caffe.draw: a picture of a NetParameter message. Graphviz's `dot` paints it; the text for `dot` needs nothing.

Only `get_pydot_graph` needs the package pydot.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

from ..errors import CaffeError, NetError
from ..proto import enum_name

LAYER_STYLE_DEFAULT = {"shape": "box", "fillcolor": "#6495ED", "style": "filled"}
NEURON_LAYER_STYLE = {"shape": "box", "fillcolor": "#90EE90", "style": "filled"}
BLOB_STYLE = {"shape": "octagon", "fillcolor": "#E0E0E0", "style": "filled"}
_COLORS = {"Convolution": "#FF5050", "Deconvolution": "#FF5050", "Pooling": "#FF9900", "InnerProduct": "#CC33FF"}
#: Formats that are the text itself.
_TEXT = ("dot", "gv", "raw")


def draw_net(caffe_net: Any, rankdir: str, ext: str = "png", phase: int | None = None,
             display_lrm: bool = False) -> bytes:
    """A picture in the format `ext` (png, pdf, svg... all that `dot` knows; dot itself for its text).

    `rankdir` is the direction from the data on: LR, RL, TB or BT. Layers of another `phase` are left out. `display_lrm`
    shows learning rate multipliers. Raises `CaffeError` where Graphviz is not installed or does not know the format.
    """
    text = dot_text(caffe_net, rankdir, phase=phase, display_lrm=display_lrm).encode()
    if ext in _TEXT:
        return text
    program = shutil.which("dot")
    if program is None:
        raise CaffeError(f'a picture in the format "{ext}" is painted by the program dot, which is not installed; '
                         "install Graphviz, or draw to a .dot file")
    result = subprocess.run([program, f"-T{ext}"], input=text, capture_output=True, check=False)
    if result.returncode:
        raise CaffeError(f'dot cannot paint the format "{ext}": {result.stderr.decode(errors="replace").strip()}')
    return result.stdout


def draw_net_to_file(caffe_net: Any, filename: str | os.PathLike[str], rankdir: str = "LR", phase: int | None = None,
                     display_lrm: bool = False) -> None:
    """Writes a picture in the format of the file name's extension; see `draw_net`."""
    name = os.fspath(filename)
    ext = name[name.rfind(".") + 1:]
    picture = draw_net(caffe_net, rankdir, ext, phase, display_lrm)
    try:
        with open(name, "wb") as file:
            file.write(picture)
    except OSError as error:
        raise CaffeError(f"{name}: cannot be written: {error.strerror}") from None


def get_pydot_graph(caffe_net: Any, rankdir: str, label_edges: bool = True, phase: int | None = None,
                    display_lrm: bool = False) -> Any:
    """The graph as a pydot object, to be changed and painted by it."""
    try:
        import pydot
    except ImportError:
        raise CaffeError("get_pydot_graph needs the package pydot, which is not installed; draw_net does not") from None
    return pydot.graph_from_dot_data(dot_text(caffe_net, rankdir, label_edges, phase, display_lrm))[0]


def dot_text(caffe_net: Any, rankdir: str, label_edges: bool = True, phase: int | None = None,
             display_lrm: bool = False) -> str:
    """The graph in Graphviz's language: a box for each layer, an octagon for each blob."""
    if rankdir not in ("LR", "RL", "TB", "BT"):
        raise CaffeError(f'rankdir is "{rankdir}"; it is LR, RL, TB or BT')
    lines = {}  # in order, and each once
    for layer in caffe_net.layer:
        if phase is not None and not _runs_in(layer, phase):
            continue
        node = f"{layer.name}_{layer.type}"
        in_place = len(layer.bottom) == len(layer.top) == 1 and layer.bottom[0] == layer.top[0]
        color = {"fillcolor": choose_color_by_layertype(layer.type)}
        style = NEURON_LAYER_STYLE if in_place else LAYER_STYLE_DEFAULT | color
        lines[_statement(node, {"label": get_layer_label(layer, rankdir, display_lrm), **style})] = None
        for blob in layer.bottom:
            lines[_statement(f"{blob}_blob", {"label": blob, **BLOB_STYLE})] = None
            lines[_edge(f"{blob}_blob", node, "")] = None
        for blob in layer.top:
            lines[_statement(f"{blob}_blob", {"label": blob, **BLOB_STYLE})] = None
            lines[_edge(node, f"{blob}_blob", get_edge_label(layer) if label_edges else "")] = None
    head = f"digraph {_quoted(caffe_net.name or 'Net')} {{\nrankdir={rankdir};\n"
    return head + "".join(lines) + "}\n"


def _runs_in(layer: Any, phase: int) -> bool:
    if len(layer.include) and len(layer.exclude):
        raise NetError(f"{layer.name}: has both include and exclude rules; give one kind only", layer.name)
    if len(layer.include):
        return any(rule.phase == phase for rule in layer.include)
    return all(rule.phase != phase for rule in layer.exclude)


def get_layer_label(layer: Any, rankdir: str, display_lrm: bool = False) -> str:
    """What stands in a layer's box: name, type, window and, if asked for, learning rate multipliers."""
    parts = [layer.name]
    if layer.type == "Pooling":
        window, method = layer.pooling_param, enum_name(layer.pooling_param, "pool")
        parts.append(f"(Pooling {method})")
        sizes = [window.kernel_size, window.stride, window.pad]
    else:
        parts.append(f"({layer.type})")
        window = layer.convolution_param
        sizes = [values[0] if len(values) else default for values, default in
                 ((window.kernel_size, 1), (window.stride, 1), (window.pad, 0))]
    # What does not cost space: beside each other from top to bottom, below each other from left to right.
    separator = " " if rankdir in ("TB", "BT") else "\n"
    if layer.type in ("Convolution", "Deconvolution", "Pooling"):
        parts.append(separator.join(f"{what}: {size}" for what, size in zip(("kernel size", "stride", "pad"), sizes)))
    if display_lrm and layer.type in ("Convolution", "Deconvolution", "InnerProduct"):
        multipliers = get_layer_lr_mult(layer)
        if any(multipliers):
            parts.append("lr mult: {:.1f}, {:.1f}".format(*multipliers))
    return separator.join(parts)


def get_layer_lr_mult(layer: Any) -> tuple[float, float]:
    """The learning rate multipliers of weights and biases, 1 where the layer does not say."""
    given = [param.lr_mult for param in layer.param][:2]
    return tuple(given + [1.0] * (2 - len(given)))


def get_edge_label(layer: Any) -> str:
    """What stands at the arrow to a layer's top: batch size or number of outputs, if it has one."""
    if layer.type == "Data":
        return f"Batch {layer.data_param.batch_size}"
    if layer.type in ("Convolution", "Deconvolution"):
        return str(layer.convolution_param.num_output)
    return str(layer.inner_product_param.num_output) if layer.type == "InnerProduct" else ""


def choose_color_by_layertype(layertype: str) -> str:
    """The color of a layer type's boxes."""
    return _COLORS.get(layertype, LAYER_STYLE_DEFAULT["fillcolor"])


def _statement(node: str, attributes: dict[str, str]) -> str:
    return f"{_quoted(node)} [{', '.join(f'{name}={_quoted(value)}' for name, value in attributes.items())}];\n"


def _edge(source: str, target: str, label: str) -> str:
    return f"{_quoted(source)} -> {_quoted(target)} [label={_quoted(label)}];\n"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
