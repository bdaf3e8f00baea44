"""Masks on filters, carried out on parameters: outputs of a filter times m are its scale and shift times m.

Where a Scale follows the layer's BatchNorm, that is what is multiplied (so batch statistics do not see the mask, as in the
authors' code), elsewhere the filter's weights and bias. The activations cost nothing, and the gradient for m is there
after the backward passes: dL/dm = sum over the filter's parameters of (dL/d(m w)) w.

Straight through, a masked filter is to learn as if it were not masked, which only a mask on the outputs themselves can do:
`ActivationMasks`, at the price of one more pass over them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from caffe_compat.layers.base import Layer
from caffe_compat.net import Net

from ..filters import Places
from ..state import LayerState


class FilterMasks:
    """Masks of some layers of a net, as one vector: their filters one after the other.

    `put` masks the parameters, `take` gives them back and turns their diffs into those of the unmasked ones.
    """

    def __init__(self, net: Net, layers: Sequence[LayerState], places: Sequence[Places]) -> None:
        self._net = net
        self.sizes = [layer.layout.rows for layer in layers]
        self._masked: list[tuple[int, int, LayerState | None]] = []  # layer number, learnable blob, set for weights
        for number, (layer, place) in enumerate(zip(layers, places)):
            if place.scale is not None and place.straight:
                indices = [(place.scale, None), (place.shift, None)]
            else:
                indices = [(place.weight, layer), (place.bias, None)]
            self._masked += [(number, index, whose) for index, whose in indices if index is not None]
        self._kept: list[Tensor] = []

    def put(self, masks: Tensor) -> None:
        """Multiplies the parameters by `masks` (all filters,) until `take`. Not while torch records gradients."""
        parts = masks.split(self.sizes)
        tensors = [self._net.learnable[index].blob.tensor for _, index, _ in self._masked]
        self._kept = [tensor.detach().clone() for tensor in tensors]
        self._factors = [parts[number] if layer is None else layer.layout.along_rows(parts[number])
                         for number, _, layer in self._masked]
        torch._foreach_mul_([tensor.detach() for tensor in tensors], self._factors)

    def take(self) -> Tensor:
        """Restores the parameters, multiplies their diffs by the masks, and returns the masks' diffs (all filters,)."""
        blobs = [self._net.learnable[index].blob for _, index, _ in self._masked]
        tensors = [blob.tensor.detach() for blob in blobs]
        torch._foreach_copy_(tensors, self._kept)
        present = [i for i, blob in enumerate(blobs) if blob.grad is not None]
        grads = [blobs[i].grad for i in present]
        products = torch._foreach_mul(grads, [tensors[i] for i in present])
        totals: list[Tensor | None] = [None] * len(self.sizes)
        for i, product in zip(present, products):
            number, _, layer = self._masked[i]
            total = product if layer is None else layer.layout.matrix(product).sum(1)
            totals[number] = total if totals[number] is None else totals[number] + total
        torch._foreach_mul_(grads, [self._factors[i] for i in present])
        self._kept = []
        return torch.cat([tensors[0].new_zeros(size) if total is None else total
                          for size, total in zip(self.sizes, totals)])


class ActivationMasks:
    """The same on outputs: what lies before them gets the gradient of an unmasked output, the mask the true one."""

    def __init__(self, net: Net, layers: Sequence[LayerState], places: Sequence[Places]) -> None:
        self.sizes = [layer.layout.rows for layer in layers]
        by_blob = {id(blob): layer for layer in net.layers for blob in layer.blobs}
        self._layers = [by_blob[id(net.learnable[place.scale].blob)] if place.scale is not None and place.straight
                        else net.layer_dict[layer.name] for layer, place in zip(layers, places)]

    def put(self, masks: Tensor) -> None:
        """Lets the layers mask what they make, until `take`."""
        self._totals = torch.zeros_like(masks)
        for layer, mask, total in zip(self._layers, masks.split(self.sizes), self._totals.split(self.sizes)):
            layer.forward = partial(_masked_forward, type(layer).forward, layer, mask, total)

    def take(self) -> Tensor:
        """Ends that, and returns the masks' diffs (all filters,)."""
        for layer in self._layers:
            del layer.forward
        return self._totals


def _masked_forward(forward: Callable[..., Tensor | tuple[Tensor, ...]], layer: Layer, mask: Tensor, total: Tensor,
                    *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
    tops = forward(layer, *bottoms)
    if isinstance(tops, tuple):
        return tuple(StraightThrough.apply(top, mask, total) for top in tops)
    return StraightThrough.apply(tops, mask, total)


class StraightThrough(torch.autograd.Function):
    """(y, mask) -> y * mask along axis 1; y gets the gradient of an unmasked y, and the mask's is added to `total`."""

    @staticmethod
    def forward(ctx, y: Tensor, mask: Tensor, total: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        ctx.total = total
        return y * mask.reshape(1, -1, *(1,) * (y.dim() - 2))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        ctx.total.add_((grad * y).sum([axis for axis in range(y.dim()) if axis != 1]))
        return grad, None, None
