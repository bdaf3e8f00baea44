"""The layer types, one registry entry each; every module of this folder is imported, which registers what it defines."""

from importlib import import_module
from pkgutil import iter_modules

from .base import LAYERS, Context, Layer, Shape, layer

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["LAYERS", "Context", "Layer", "Shape", "layer"]
