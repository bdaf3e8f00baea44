"""Conversion of whole nets to PyTorch and other formats, and back."""

from . import torch_loss, torch_neuron, torch_norm, torch_recurrent, torch_shape, torch_ssd, torch_vision  # noqa: F401
from . import torch_target  # noqa: F401
from .graph import Graph, Node
from .targets import TARGETS, Options, Target, UnsupportedLayer, support

__all__ = ["TARGETS", "Graph", "Node", "Options", "Target", "UnsupportedLayer", "support"]
