"""What a net costs before and after pruning: multiply-adds, parameters, memory; and what pruning aims at.

The one place where pruned costs are counted. How often a layer uses its weights is taken from `caffe_compat.cost`, which
counts for nets of any kind; here is what pruning leaves of that, and by which rule it is added up. Papers count
differently, so a number is worth something only with its rule: `RULES` has them by name, and whoever prints a number
prints the rule with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod

from caffe_compat.cost import LayerCost, layer_costs
from caffe_compat.layers.base import Layer
from caffe_compat.net import Net
from caffe_compat.registry import Registry

from .groups import Layout, Masks
from .state import LayerState


@dataclass(frozen=True)
class Budget:
    """Multiply-adds for one image and weights, `*_left` after pruning, of the layers counted.

    `speedup` and `compression` are the reference's `speedup` and `compRatio`; 1 where no layer is counted.
    """

    operations: int
    operations_left: float
    weights: int
    weights_left: float

    @property
    def speedup(self) -> float:
        """Multiply-adds before by multiply-adds after; infinite when nothing is left."""
        return _ratio(self.operations, self.operations_left)

    @property
    def compression(self) -> float:
        """Weights before by weights after; infinite when nothing is left."""
        return _ratio(self.weights, self.weights_left)


def measure(layers: Iterable[LayerState], *, speedup_counts_fc: bool = False, compression_counts_conv: bool = False) -> Budget:
    """The budget of `layers`: operations of Convolutions (of all with `speedup_counts_fc`), weights of InnerProducts
    (of all with `compression_counts_conv`): IF_speedup_count_fc, IF_compr_count_conv. The rule "reference".

    A layer keeps 1 - pruned_ratio of its weights, each used once for every pixel of its top. Biases are never pruned and
    not counted.
    """
    operations, operations_left, weights, weights_left = 0, 0.0, 0, 0.0
    for layer in layers:
        count = layer.layout.rows * layer.layout.columns
        kept = 1 - float(layer.pruned_ratio)
        if layer.is_conv or speedup_counts_fc:
            operations += count * layer.outputs
            operations_left += count * layer.outputs * kept
        if not layer.is_conv or compression_counts_conv:
            weights += count
            weights_left += count * kept
    return Budget(operations, operations_left, weights, weights_left)


def _ratio(before: float, after: float) -> float:
    if after > 0:
        return before / after
    return float("inf") if before else 1.0


# -- whole nets -------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class LayerBudget:
    """What one layer costs: `cost` as `caffe_compat.cost` counts it, `kept` the share of its weights in rows and columns
    that are not zero throughout, `others` one operation for each value that it computes without a matrix."""

    cost: LayerCost
    weights: int
    kept: float
    others: int


@dataclass(frozen=True)
class Rule:
    """A way to add up: `text` says it in words; (operations, operations left, parameters, parameters left) of a layer."""

    text: str
    count: Callable[[LayerBudget], tuple[int, float, int, float]]


RULES: Registry[Rule] = Registry("counting rule")


def _matrices(*types: str) -> Callable[[LayerBudget], tuple[int, float, int, float]]:
    def count(layer: LayerBudget) -> tuple[int, float, int, float]:
        if layer.cost.type not in types:
            return 0, 0.0, 0, 0.0
        return layer.cost.multiply_adds, layer.cost.multiply_adds * layer.kept, layer.weights, layer.weights * layer.kept
    return count


def _all(layer: LayerBudget) -> tuple[int, float, int, float]:
    operations, parameters, pruned = layer.cost.multiply_adds, layer.cost.parameters, 1 - layer.kept
    return (operations + layer.others, operations * layer.kept + layer.others,
            parameters, parameters - layer.weights * pruned)


CONV = RULES.add("conv")(Rule(
    "multiply-adds and weights of Convolution layers for one sample; biases and all other layers not counted",
    _matrices("Convolution")))
MATRIX = RULES.add("matrix")(Rule(
    "multiply-adds and weights of Convolution, Deconvolution and InnerProduct layers for one sample; biases and all other "
    "layers not counted", _matrices("Convolution", "Deconvolution", "InnerProduct")))
ALL = RULES.add("all")(Rule(
    "multiply-adds of Convolution, Deconvolution and InnerProduct layers for one sample, and one operation for each value "
    "that another layer computes or a bias is added to; all parameters", _all))


def _reference(layer: LayerBudget) -> tuple[int, float, int, float]:
    conv, inner = (rule.count(layer) for rule in (CONV, Rule("", _matrices("InnerProduct"))))
    return *conv[:2], *inner[2:]


RULES.add("reference")(Rule(
    "as the reference implementation: its speedup counts multiply-adds of Convolution layers, its compRatio weights of "
    "InnerProduct layers; a layer keeps 1 - (rows + columns - rows * columns) of its weights, as shares pruned; biases not "
    "counted", _reference))

#: Layers that hand values on without computing any.
_FREE = frozenset(("Input", "Split", "Silence", "Concat", "Slice", "Flatten", "Reshape", "Dropout", "Crop", "Data", "ImageData",
                   "DummyData", "HDF5Data", "MemoryData", "WindowData", "Parameter"))


def layer_budgets(net: Net, *, pruned: bool = True) -> list[LayerBudget]:
    """What each layer of `net` costs, and what is left of it with the weights that it has now; all, unless `pruned`."""
    return [LayerBudget(cost, *_weights(layer, pruned), _others(layer, cost))
            for layer, cost in zip(net.layers, layer_costs(net))]


def _weights(layer: Layer, pruned: bool) -> tuple[int, float]:
    """How many weights a matrix has, and what share of them is in rows and columns that are not zero throughout."""
    if layer.type not in ("Convolution", "Deconvolution", "InnerProduct"):
        return 0, 1.0
    blob = layer.blobs[0]
    if not pruned:
        return blob.count, 1.0
    layout = Layout(blob.shape, getattr(layer.param, "group", 1), getattr(layer.param, "transpose", False))
    masks = Masks(layout)
    masks.set_from_zeros(blob.tensor.detach())
    rows, columns = (masks.num_rows / layout.rows, masks.num_columns / layout.columns)
    return blob.count, (1 - rows) * (1 - columns)


def _others(layer: Layer, cost: LayerCost) -> int:
    if layer.type in _FREE or not cost.shapes or not cost.shapes[0]:
        return 0
    if layer.type in ("Convolution", "Deconvolution", "InnerProduct") and len(layer.blobs) < 2:
        return 0
    return sum(prod(shape[1:]) for shape in cost.shapes)


def budget(layers: Iterable[LayerBudget], rule: Rule) -> Budget:
    """The sum over `layers` by a rule."""
    counts = [rule.count(layer) for layer in layers]
    return Budget(*(sum(column) for column in zip(*counts))) if counts else Budget(0, 0.0, 0, 0.0)


def memory(net: Net) -> tuple[int, int]:
    """Bytes of the parameters, and of all blobs for the batch that the net has now, as float32."""
    costs = layer_costs(net)
    return 4 * sum(cost.parameters for cost in costs), sum(cost.memory for cost in costs)
