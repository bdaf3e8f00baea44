"""The layer types, one registry entry each; every module of this folder is imported, which registers what it defines.

In scripts for pycaffe `caffe.layers` makes layers of a NetSpec (`L.Convolution(...)`): other names than the modules'
own are those of `pycaffe.net_spec.layers`.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from .base import LAYERS, Context, Layer, Shape, layer

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["LAYERS", "Context", "Layer", "Shape", "layer"]


def __getattr__(name: str) -> Any:
    if not name[0].isupper():
        raise AttributeError(f"module {__name__} has no attribute {name!r}")
    from ..pycaffe import net_spec

    return getattr(net_spec.layers, name)
