"""One function a target, for Python."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from ..net import Net
from .conversion import Report, convert, open_net
from .graph import Graph
from .passes import passes_for
from .targets import Options
from .torch_target import to_module


def to_torch(model: Net | str | os.PathLike[str], weights: str | os.PathLike[str] | None = None,
             options: Options | None = None, **opening: Any) -> nn.Module:
    """A plain `nn.Module` of a net, or of a prototxt and its weights, in the mode of the net's phase.

    `opening` is what `open_net` takes. The module has weights of its own.
    """
    options = options or Options()
    net = model if isinstance(model, Net) else open_net(model, weights, **opening)[0]
    return to_module(Graph.of(net).run(passes_for(options)), options.rename, share=net is not model)


def to_safetensors(model: str | os.PathLike[str], weights: str | os.PathLike[str], out: str | os.PathLike[str],
                   **options: Any) -> Report:
    """Writes the weights as a .safetensors file; `options` are those of `convert`."""
    return convert(model, weights, "safetensors", out, **options)


def to_exported(model: str | os.PathLike[str], weights: str | os.PathLike[str], out: str | os.PathLike[str],
                **options: Any) -> Report:
    """Writes a torch.export program (.pt2); `options` are those of `convert`."""
    return convert(model, weights, "exported", out, **options)


def to_onnx(model: str | os.PathLike[str], weights: str | os.PathLike[str], out: str | os.PathLike[str],
            **options: Any) -> Report:
    """Writes an ONNX file; `options` are those of `convert`."""
    return convert(model, weights, "onnx", out, **options)
