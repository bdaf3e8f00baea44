"""`OrthoReg` (Lubana and Dick, arXiv 2009.05014): filters are made uncorrelated, then pruned by Fisher importance.

Before a round of pruning the net trains with the penalty of `orthoreg_penalty` on all its convolutions, by default instead of
weight decay: for rank_param.iter iterations before the first round, for the last `finetune` ones before each later round.
After the last round it is not used. The authors' factor is 0.01, 0.001 for MobileNet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from caffe_compat.net import Net

from .. import filters
from ..state import LayerState
from ..ties import is_depthwise
from .base import METHODS
from .orthoreg_penalty import Term, add_gradient, coefficients, term
from .ranked import Ranked

if TYPE_CHECKING:
    from ..config import PruneConfig
    from ..pruner import Pruner


@METHODS.add("OrthoReg")
class OrthoReg(Ranked):
    """`every` applies the penalty in each n-th iteration alone, n times as strong: two products of matrices of each layer's
    size are dear beside a small batch."""

    settings = "orthoreg_param"
    estimator = "Fisher"

    def __init__(self, config: PruneConfig) -> None:
        super().__init__(config)
        if self.param.factor <= 0:
            self.fail(f"orthoreg_param: factor is {self.param.factor:g}, expected more than 0")
        if self.param.every < 1:
            self.fail(f"orthoreg_param: every is {self.param.every}, expected 1 or more")

    def _rank_settings(self) -> Any:
        return self.param.rank_param

    def bind(self, pruner: Pruner) -> None:
        super().bind(pruner)
        self._convolutions = [layer for layer in pruner.layers if layer.is_conv]
        self._convolution_places = filters.places(pruner.net, self._convolutions)
        self._partners = shortcuts(pruner.net, self._convolutions)

    @property
    def regularizing(self) -> bool:
        """Whether the penalty is on: the next round is near enough."""
        following = self.next_round()
        if following is None:
            return False
        window = self.rank.iter if self.done == 0 else self.param.finetune
        return following - window < self.steps <= following

    @property
    def weight_decay(self) -> float | None:
        return 0.0 if self.regularizing and not self.param.keep_decay else None

    def regularize(self, iteration: int) -> None:
        if not self.regularizing or self.steps % self.param.every:
            return
        shares = coefficients(self.terms())
        for layer, place, one, share in zip(self._convolutions, self._convolution_places, self.terms(), shares):
            weight, grad = layer.weight.tensor, layer.weight.grad
            if grad is None:
                continue
            bias = None if place.bias is None else self.pruner.net.learnable[place.bias].blob
            if bias is not None and bias.grad is None:
                bias = None
            add_gradient(weight, None if bias is None else bias.tensor, one.by_filters,
                         self.param.factor * share * self.param.every, grad, None if bias is None else bias.grad)

    def terms(self) -> list[Term]:
        """How each convolution enters the penalty, by the filters and channels it has left."""
        found = []
        for i, layer in enumerate(self._convolutions):
            layout = layer.layout
            rows = layout.rows - layer.masks.num_rows
            channels = layout.channels - int(layer.masks.num_columns // layout.positions)
            found.append(term((rows, channels, layout.positions), i == 0, is_depthwise(layer), self._partners.get(i)))
        return found


def shortcuts(net: Net, convolutions: list[LayerState]) -> dict[int, int]:
    """1x1 convolutions on the shortcut of a block, by their index, and the first convolution of the block: it reads the same
    blob, and unlike the shortcut's its result goes through another convolution before they are added up."""
    index = {layer.name: i for i, layer in enumerate(convolutions)}
    origin: dict[str, str] = {}  # what a blob was before Splits
    readers: dict[str, list[int]] = {}
    carried: dict[str, int] = {}  # blobs that hold a convolution's result and nothing else
    ends: set[int] = set()
    for layer in net.layers:
        bottoms, tops = list(layer.spec.bottom), net.top_names[layer.name]
        if layer.type == "Split":
            for top in tops:
                origin[top] = origin.get(bottoms[0], bottoms[0])
        if layer.type == "Eltwise":
            ends |= {carried[name] for name in bottoms if name in carried}
        here = carried.get(bottoms[0]) if len(bottoms) == 1 else None
        for name in tops:
            carried.pop(name, None)
        if layer.name in index:
            readers.setdefault(origin.get(bottoms[0], bottoms[0]), []).append(index[layer.name])
            carried[tops[0]] = index[layer.name]
        elif here is not None and layer.type in filters.NEURONS | {"BatchNorm", "Scale"}:
            carried[tops[0]] = here
    result = {}
    for group in readers.values():
        short = [i for i in group if i in ends and convolutions[i].layout.positions == 1]
        first = [i for i in group if i not in short and i not in ends]
        result.update({i: first[0] for i in short if first})
    return result
