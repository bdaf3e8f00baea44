"""Random small nets of the layers that slimming knows, and random pruning of their weights."""

from __future__ import annotations

from random import Random

import torch

from caffe_compat import Net, proto
from caffe_compat.proto import Document

ACTIVATIONS = ("ReLU", "PReLU", "ELU", "Sigmoid", "TanH", "AbsVal", "BNLL", "Dropout", "Swish")


class Builder:
    """Adds layers to a net text; `blobs` are (name, channels, size) of what can be read."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        channels, size = rng.randint(1, 3), rng.randint(9, 12)
        self.layers = [f'layer {{ name: "in" type: "Input" top: "x" input_param {{ shape {{ dim: 2 dim: {channels} dim: {size} '
                       f"dim: {size} }} }} }}"]
        self.blobs = [("x", channels, size)]

    def add(self, kind: str, bottoms: list[str], settings: str = "", tops: list[str] | None = None) -> str:
        name = f"l{len(self.layers)}"
        tops = tops or [name]
        self.layers.append(f'layer {{ name: "{name}" type: "{kind}" ' + " ".join(f'bottom: "{b}"' for b in bottoms) + " "
                           + " ".join(f'top: "{t}"' for t in tops) + f" {settings} }}")
        return tops[0]

    def grow(self) -> None:
        """One more layer, or a few that belong together."""
        pick = self.rng.choice
        name, channels, size = pick(self.blobs[-3:])
        step = pick(("conv", "conv", "conv", "group", "depthwise", "norm", "activate", "activate", "pool", "sum", "sum",
                     "concat", "slice", "deconv", "lrn", "shared", "power"))
        getattr(self, f"_{step}")(name, channels, size)

    def _conv(self, name: str, channels: int, size: int, outputs: int = 0, group: int = 1, same: bool = False) -> str:
        r = self.rng
        kernel, dilation = r.choice((1, 2, 3, 3, 5)), r.choice((1, 1, 2))
        pad, stride = r.randint(0, 2), r.choice((1, 1, 1, 2))
        if same:
            kernel, pad, stride, dilation = r.choice(((1, 0, 1, 1), (3, 1, 1, 1)))
        after = (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        if after < 1 or size < 3:
            kernel, pad, stride, dilation, after = 1, 0, 1, 1, size
        outputs = outputs or r.randint(2, 7)
        top = self.add("Convolution", [name], f"convolution_param {{ num_output: {outputs} kernel_size: {kernel} pad: {pad} "
                       f"stride: {stride} dilation: {dilation} group: {group} bias_term: {r.choice(('true', 'false'))} }}")
        self.blobs.append((top, outputs, after))
        return top

    def _group(self, name: str, channels: int, size: int) -> None:
        group = self.rng.choice([g for g in range(1, channels + 1) if channels % g == 0])
        self._conv(name, channels, size, group * self.rng.randint(1, 3), group)

    def _depthwise(self, name: str, channels: int, size: int) -> None:
        self._conv(name, channels, size, channels, channels)

    def _norm(self, name: str, channels: int, size: int) -> None:
        top = self.add("BatchNorm", [name])
        self.add("Scale", [top], "scale_param { bias_term: true }", [top])
        self.blobs.append((top, channels, size))

    def _activate(self, name: str, channels: int, size: int) -> None:
        self.blobs.append((self.add(self.rng.choice(ACTIVATIONS), [name]), channels, size))

    def _power(self, name: str, channels: int, size: int) -> None:
        self.blobs.append((self.add("Power", [name], "power_param { scale: 0.5 shift: 0.25 }"), channels, size))

    def _pool(self, name: str, channels: int, size: int) -> None:
        if size < 4:
            return
        pad = self.rng.randint(0, 1)
        top = self.add("Pooling", [name], f"pooling_param {{ pool: {self.rng.choice(('MAX', 'AVE'))} kernel_size: 3 stride: 1 "
                       f"pad: {pad} }}")
        self.blobs.append((top, channels, size + 2 * pad - 2))

    def _sum(self, name: str, channels: int, size: int) -> None:
        other = self._conv(name, channels, size, channels, same=True)
        if self.rng.random() < 0.5:
            self._norm(other, channels, size)
            other = self.blobs[-1][0]
        operation = self.rng.choice(("SUM", "SUM", "PROD", "MAX"))
        top = self.add("Eltwise", [name, other], f"eltwise_param {{ operation: {operation} }}")
        self.blobs.append((top, channels, size))

    def _concat(self, name: str, channels: int, size: int) -> None:
        other = self._conv(name, channels, size, same=True)
        self.blobs.append((self.add("Concat", [name, other]), channels + self.blobs[-1][1], size))

    def _slice(self, name: str, channels: int, size: int) -> None:
        if channels < 3:
            return
        point = self.rng.randint(1, channels - 1)
        tops = [f"s{len(self.layers)}a", f"s{len(self.layers)}b"]
        self.add("Slice", [name], f"slice_param {{ slice_point: {point} }}", tops)
        self.blobs += [(tops[0], point, size), (tops[1], channels - point, size)]

    def _deconv(self, name: str, channels: int, size: int) -> None:
        outputs = self.rng.randint(2, 5)
        top = self.add("Deconvolution", [name], f"convolution_param {{ num_output: {outputs} kernel_size: 2 }}")
        self.blobs.append((top, outputs, size + 1))

    def _lrn(self, name: str, channels: int, size: int) -> None:
        region = self.rng.choice(("ACROSS_CHANNELS", "WITHIN_CHANNEL"))
        self.blobs.append((self.add("LRN", [name], f"lrn_param {{ local_size: 3 norm_region: {region} }}"), channels, size))

    def _shared(self, name: str, channels: int, size: int) -> None:
        share = f'param {{ name: "w{len(self.layers)}" }} convolution_param {{ num_output: {channels} kernel_size: 1 }}'
        once = self.add("Convolution", [name], share)
        self.blobs.append((self.add("Convolution", [once], share), channels, size))

    def finish(self) -> Document:
        """The net, ending with an InnerProduct over the pixels of the last blob; other blobs nobody reads are outputs."""
        last = self.blobs[-1][0]
        if self.rng.random() < 0.5:
            last = self.add("Flatten", [last])
        self.add("InnerProduct", [last], "inner_product_param { num_output: 4 }")
        return proto.parse_text("\n".join(self.layers), "NetParameter")


def random_net(seed: int) -> tuple[Document, Net]:
    """A net in the TEST phase with random pruned weights: rows, channels, kernel borders and columns of zeros."""
    rng = Random(seed)
    builder = Builder(rng)
    for _ in range(rng.randint(3, 9)):
        builder.grow()
    document = builder.finish()
    net = Net(document, "TEST", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for layer in net.layers:
        for k, blob in enumerate(layer.blobs):
            _fill(layer.type, k, blob.tensor.data, rng, generator)
    return document, net


def _fill(kind: str, index: int, values: torch.Tensor, rng: Random, generator: torch.Generator) -> None:
    values.normal_(0, 0.5, generator=generator)
    if kind == "BatchNorm" and index:
        values.abs_().add_(0.5)
    elif kind in ("Convolution", "Deconvolution", "InnerProduct") and index == 0:
        prune(values, rng, generator)
    elif kind in ("Convolution", "Scale") and index == 1 and rng.random() < 0.7:
        values[torch.rand(values.shape, generator=generator) < 0.6] = 0


def prune(values: torch.Tensor, rng: Random, generator: torch.Generator) -> None:
    """Zeroes some rows, inputs, borders and columns of a weight."""
    share = rng.choice((0, 0.3, 0.6, 0.95))
    for axis in (0, 1):
        if rng.random() < 0.7:
            gone = torch.rand(values.shape[axis], generator=generator) < share
            values.index_fill_(axis, gone.nonzero().flatten(), 0)
    for axis in range(2, values.dim()):
        if values.shape[axis] > 1:
            first, last = rng.randint(0, 1), values.shape[axis] - rng.randint(0, 1)
            values.narrow(axis, 0, first).zero_()
            values.narrow(axis, last, values.shape[axis] - last).zero_()
    if rng.random() < 0.3:
        values.mul_((torch.rand(values.shape[1:], generator=generator) < 0.5).to(values.dtype))
