"""DSA's budget (arXiv 2004.02164): multiply-adds as a quadratic form of keep ratios, and the ADMM steps that hold them to it.

minimize loss(a) subject to F(a) <= B is split into a and a copy z with F(z) <= B; u is their scaled multiplier:

    a: the least of d . a + |a - a_last|^2 / 2 + rho / 2 |a - z + u|^2, d a step down the loss      (`move`)
    z: the nearest point to a + u with F(z) <= B                                                 (`project`)
    u: u + a - z

The authors published no training code; the forms of the first two steps are ours. a's is that of linearized ADMM, in
closed form, for a gradient step on all three terms lags behind u, which then overshoots. In z's the boundary of F, which
is neither convex nor concave, is replaced by the tangent at the last point, several times. Nothing here waits for the
device, but `whole_filters` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..coupling import Coupling
from ..state import LayerState

#: Tangents taken for one projection; values tried at once and how often, when going down one of them.
TANGENTS, CANDIDATES, REFINEMENTS = 5, 33, 3


@dataclass(frozen=True)
class Cost:
    """F(a) = a^T quadratic a + linear^T a + constant, for keep ratios a (groups,); `quadratic[i, j]` is what layers of
    group i cost that read channels of group j."""

    quadratic: Tensor
    linear: Tensor
    constant: Tensor

    def __call__(self, keep: Tensor) -> Tensor:
        """F, a scalar."""
        return keep @ self.quadratic @ keep + self.linear @ keep + self.constant

    def gradient(self, keep: Tensor) -> Tensor:
        """F's gradient (groups,)."""
        return (self.quadratic + self.quadratic.T) @ keep + self.linear

    def relative(self) -> Cost:
        """The same by what the whole net costs."""
        whole = self(torch.ones_like(self.linear))
        return Cost(self.quadratic / whole, self.linear / whole, self.constant / whole)

    def to(self, device: torch.device) -> Cost:
        """In float32 on a device."""
        return Cost(*(part.to(device, torch.float32) for part in (self.quadratic, self.linear, self.constant)))


def cost(layers: Sequence[LayerState], coupling: Coupling, groups: Sequence[Sequence[LayerState]], *,
         counts_fc: bool = False) -> Cost:
    """Multiply-adds for one image of the convolutions in `layers` (of all with `counts_fc`), in float64 on the CPU.

    A layer costs its multiply-adds times the ratio of its own group times that of what it reads, by the share of each
    group in its input channels; 1 for what is in no group. A convolution in one group with what it reads (a depthwise
    one) costs its ratio once.
    """
    quadratic, linear, constant = np.zeros((len(groups), len(groups))), np.zeros(len(groups)), 0.0
    own = {layer.index: number for number, group in enumerate(groups) for layer in group}
    group_of = np.full(len(coupling.needed) + 1, -1)
    for index, number in own.items():
        written = coupling.writes[index]
        if written is not None:
            group_of[written.cpu().numpy()] = number
    for layer in layers:
        if not (layer.is_conv or counts_fc):
            continue
        operations = float(layer.outputs) * layer.layout.rows * layer.layout.columns
        read, of = coupling.reads[layer.index], own.get(layer.index, -1)
        sources = np.array([-1]) if read is None else group_of[read.cpu().numpy()].ravel()
        shares = np.bincount(sources + 1, minlength=len(groups) + 1) / len(sources)
        if layer.layout.group > 1 and of >= 0 and shares[of + 1] == 1:
            linear[of] += operations
        elif of >= 0:
            quadratic[of] += operations * shares[1:]
            linear[of] += operations * shares[0]
        else:
            linear += operations * shares[1:]
            constant += operations * shares[0]
    return Cost(*(torch.as_tensor(part, dtype=torch.float64) for part in (quadratic, linear, constant)))


def move(keep: Tensor, step: Tensor, copy: Tensor, multiplier: Tensor, rho: float, least: Tensor) -> Tensor:
    """The next ratios, in [least, 1]; `step` is d."""
    return ((keep - step).add_(copy - multiplier, alpha=rho) / (1 + rho)).clamp_(max=1).maximum(least)


def project(point: Tensor, form: Cost, budget: float, least: Tensor) -> Tensor:
    """The nearest ratios to `point` in [least, 1] with form(z) <= budget, nearly; the least ratios if
    there are none."""
    z = point.clamp(max=1).maximum(least)
    for _ in range(TANGENTS):
        slope = form.gradient(z)
        z = _half_space(point, slope, budget - form(z) + slope @ z, least)
    return z


def _half_space(point: Tensor, slope: Tensor, limit: Tensor, least: Tensor) -> Tensor:
    """The nearest ratios to `point` in [least, 1] with slope . z <= limit: point - m slope, cut off at the ends, m being
    searched for between 0 and where all are at their least."""
    most = torch.where(slope > 0, (point - least) / slope.clamp(min=1e-12), torch.zeros_like(slope)).amax().clamp(min=0)
    low, high = torch.zeros_like(most), most
    places = torch.linspace(0, 1, CANDIDATES, device=point.device)
    for _ in range(REFINEMENTS):
        steps = torch.lerp(low, high, places)
        inside = (point - steps[:, None] * slope).clamp(max=1).maximum(least) @ slope <= limit
        first = torch.where(inside.any(), inside.to(torch.uint8).argmax(), CANDIDATES - 1)
        low, high = steps[(first - 1).clamp(min=0)], steps[first]
    return (point - high * slope).clamp(max=1).maximum(least)


def whole_filters(keep: Tensor, sizes: Sequence[int], form: Cost, budget: float, least: int = 1) -> list[int]:
    """How many filters each group keeps: the ratios rounded down, then up again one by one where the budget allows it,
    the largest remainder first; at least `least`, and fewer than the ratio says if the budget needs it."""
    form, sizes_of = form.to(torch.device("cpu")), np.array(sizes)
    wanted = np.clip(keep.detach().cpu().double().numpy() * sizes_of, np.minimum(least, sizes_of), sizes_of)
    counts = np.floor(wanted + 1e-6).astype(int)

    def fits(numbers: np.ndarray) -> bool:
        return bool(form(torch.from_numpy(numbers / sizes_of).float()) <= budget)

    while not fits(counts) and (counts > least).any():
        slope = form.gradient(torch.from_numpy(counts / sizes_of).float()).numpy() / sizes_of
        counts[np.where(counts > least, slope, -np.inf).argmax()] -= 1
    for group in np.argsort(-(wanted - counts), kind="stable"):
        if counts[group] + 1 <= min(np.ceil(wanted[group]), sizes_of[group]):
            counts[group] += 1
            counts[group] -= not fits(counts)
    return counts.tolist()
