"""Weight fillers: what a parameter blob holds before training (FillerParameter).

One function a filler, entered in `FILLERS` under Caffe's name. Each fills a CPU tensor in place; what is random comes
from the generator it is given. Caffe's own random values are not reproduced, their distributions are.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, sqrt
from typing import Any

import torch
from torch import Tensor

from .errors import NetError
from .registry import Registry

Filler = Callable[[Tensor, Any, torch.Generator, str], None]

#: Every filler, by the `type` of a FillerParameter.
FILLERS: Registry[Filler] = Registry("filler")


def fill(tensor: Tensor, spec: Any, rng: torch.Generator, where: str) -> None:
    """Fills `tensor` (on the CPU) in place as the FillerParameter `spec` says; `where` is named in errors.

    Raises `UnknownType` for a filler that does not exist and `NetError` for settings or shapes that it cannot fill.
    """
    filler = FILLERS.get(spec.type, where)
    if not tensor.numel():
        raise NetError(f"{where}: the blob to fill is empty, its shape is {tuple(tensor.shape)}; give it a size")
    if spec.sparse != -1 and spec.type != "gaussian":
        raise NetError(f'{where}: the filler "{spec.type}" has sparse: {spec.sparse}; only "gaussian" can be sparse')
    with torch.no_grad():
        filler(tensor, spec, rng, where)


@FILLERS.add("constant")
def constant(tensor: Tensor, spec: Any, rng: torch.Generator, where: str) -> None:
    """`value` everywhere."""
    tensor.fill_(spec.value)


@FILLERS.add("uniform")
def uniform(tensor: Tensor, spec: Any, rng: torch.Generator, where: str) -> None:
    """Uniform between `min` and `max`."""
    if spec.min > spec.max:
        raise NetError(f"{where}: a uniform filler needs min <= max; found min {spec.min:g}, max {spec.max:g}")
    tensor.uniform_(spec.min, spec.max, generator=rng)


@FILLERS.add("gaussian")
def gaussian(tensor: Tensor, spec: Any, rng: torch.Generator, where: str) -> None:
    """Normal with `mean` and `std`; with `sparse` s, a value is kept with probability s / shape[0] and else zero."""
    if not spec.std > 0:
        raise NetError(f"{where}: a gaussian filler needs std > 0, found {spec.std:g}; for one value there is constant")
    tensor.normal_(spec.mean, spec.std, generator=rng)
    if spec.sparse == -1:
        return
    outputs = _first_axis(tensor, "gaussian", where)
    if not 0 <= spec.sparse <= outputs:
        raise NetError(f"{where}: sparse is {spec.sparse}; it is the mean number of non-zero weights an input and must "
                       f"lie between 0 and the {outputs} outputs")
    tensor.mul_(torch.empty_like(tensor).bernoulli_(spec.sparse / outputs, generator=rng))


@FILLERS.add("positive_unitball")
def positive_unitball(tensor: Tensor, spec: Any, rng: torch.Generator, where: str) -> None:
    """Uniform between 0 and 1, then scaled so that the values of each index of the first axis sum to 1."""
    rows = tensor.view(_first_axis(tensor, "positive_unitball", where), -1)
    rows.uniform_(0, 1, generator=rng)
    rows.div_(rows.sum(1, keepdim=True))


@FILLERS.add("xavier")
def xavier(tensor: Tensor, spec: Any, rng: torch.Generator, where: str) -> None:
    """Uniform in +-sqrt(3 / n), n as in `_fan` (Glorot and Bengio 2010)."""
    bound = sqrt(3 / _fan(tensor, spec, where))
    tensor.uniform_(-bound, bound, generator=rng)


@FILLERS.add("msra")
def msra(tensor: Tensor, spec: Any, rng: torch.Generator, where: str) -> None:
    """Normal with standard deviation sqrt(2 / n), n as in `_fan` (He et al. 2015)."""
    tensor.normal_(0, sqrt(2 / _fan(tensor, spec, where)), generator=rng)


@FILLERS.add("bilinear")
def bilinear(tensor: Tensor, spec: Any, rng: torch.Generator, where: str) -> None:
    """Bilinear interpolation in every square kernel of a 4-axis blob, for upsampling by a Deconvolution.

    Every pair of channels gets the kernel, so only a Deconvolution with group = channels keeps channels apart.
    """
    if tensor.dim() != 4 or tensor.shape[2] != tensor.shape[3]:
        raise NetError(f"{where}: a bilinear filler needs a blob of 4 axes with square kernels, found the shape "
                       f"{tuple(tensor.shape)}")
    size = tensor.shape[3]
    factor = ceil(size / 2)
    center = (size - 1) / (2 * factor)
    ramp = 1 - (torch.arange(size, dtype=tensor.dtype) / factor - center).abs()
    tensor.copy_(ramp[:, None] * ramp)


def _fan(tensor: Tensor, spec: Any, where: str) -> float:
    """The n that `variance_norm` picks: fan_in, fan_out or their mean.

    They are counted on the blob as stored, fan_in = count / shape[0] and fan_out = count / shape[1], so they swap where
    a layer stores inputs first; a blob of one axis has fan_in 1 and fan_out count.
    """
    count = tensor.numel()
    fan_in = count // _first_axis(tensor, spec.type, where)
    fan_out = count // tensor.shape[1] if tensor.dim() > 1 else count
    if spec.variance_norm == spec.AVERAGE:
        return (fan_in + fan_out) / 2
    return fan_out if spec.variance_norm == spec.FAN_OUT else fan_in


def _first_axis(tensor: Tensor, name: str, where: str) -> int:
    if not tensor.dim():
        raise NetError(f'{where}: the filler "{name}" needs a blob with axes, found a scalar; use a constant filler')
    return tensor.shape[0]
