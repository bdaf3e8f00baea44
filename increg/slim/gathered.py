"""A convolution that skips columns of zeros: y = W x, over the kept columns of the weight and the rows of im2col(x) alone.

Needs nothing but torch; a copy of this file runs anywhere. Columns are gathered for a few rows of the image at a time,
which stay in the cache until they are multiplied; gathering all at once takes longer than it saves in large images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GatheredConv2d(nn.Module):
    """A convolution of the kept columns of a weight (out_channels, in_channels / groups, *kernel_size): `columns` of them in
    each group. For inference: where a gradient is asked for, it runs as an ordinary convolution.

    Buffers, for each group g: `weight<g>` (rows, columns + 1), whose last column is the bias, and `kept<g>` (columns,), where
    in the flattened weight each column was. `stride` and `dilation` are pairs (h, w), `padding` is (top, left, bottom, right).
    Takes (N, C, H, W) in any memory format and returns (N, out_channels, H', W') contiguous.
    """

    #: Values of gathered columns that are worked on at a time: 4 MiB of float32.
    tile = 1 << 20

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int], columns: tuple[int, ...],
                 stride: tuple[int, int] = (1, 1), padding: tuple[int, int, int, int] = (0, 0, 0, 0),
                 dilation: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.groups = len(columns)
        self.channels, self.out_channels, self.kernel = in_channels // self.groups, out_channels, kernel_size
        self.stride, self.padding, self.dilation = stride, padding, dilation
        for group, count in enumerate(columns):
            self.register_buffer(f"weight{group}", torch.zeros(out_channels // self.groups, count + 1))
            self.register_buffer(f"kept{group}", torch.zeros(count, dtype=torch.long))

    def extra_repr(self) -> str:
        kept = sum(self.get_buffer(f"kept{group}").numel() for group in range(self.groups))
        total = self.groups * self.channels * self.kernel[0] * self.kernel[1]
        return (f"{self.groups * self.channels}, {self.out_channels}, kernel_size={self.kernel}, columns={kept} of {total}, "
                f"groups={self.groups}")

    def dense(self) -> tuple[Tensor, Tensor]:
        """The whole weight, zeros in place, and the bias."""
        weights, biases = [], []
        for group in range(self.groups):
            packed, kept = self.get_buffer(f"weight{group}"), self.get_buffer(f"kept{group}")
            matrix = packed.new_zeros(len(packed), self.channels * self.kernel[0] * self.kernel[1])
            weights.append(matrix.index_copy(1, kept, packed[:, :-1]).reshape(len(packed), self.channels, *self.kernel))
            biases.append(packed[:, -1])
        return torch.cat(weights), torch.cat(biases)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            top, left, bottom, right = self.padding
            return F.conv2d(F.pad(x, (left, right, top, bottom)), *self.dense(), self.stride, 0, self.dilation, self.groups)
        high, wide = self.out_size(x.shape[2], x.shape[3])
        out = x.new_empty(len(x), self.out_channels, high, wide)
        step = self.out_channels // self.groups
        for group in range(self.groups):
            source = x.narrow(1, group * self.channels, self.channels)
            self._convolve(source, out.narrow(1, group * step, step), self.get_buffer(f"weight{group}"),
                           self.get_buffer(f"kept{group}"))
        return out

    def out_size(self, *sizes: int) -> tuple[int, int]:
        """The height and width of the output for those of the input."""
        return tuple((size + before + after - d * (k - 1) - 1) // s + 1 for size, before, after, d, k, s in zip(
            sizes, self.padding[:2], self.padding[2:], self.dilation, self.kernel, self.stride))

    def _convolve(self, x: Tensor, out: Tensor, weight: Tensor, kept: Tensor) -> None:
        """Fills `out` (N, rows, H', W') tile by tile: some rows of one image on a CPU, whole images on a GPU."""
        high, wide = out.shape[2:]
        images = len(x) if x.is_cuda else 1
        tiles = 1 if x.is_cuda else min(high, -(-high * wide * (len(kept) + 1) // self.tile))
        rows = -(-high // tiles)
        span = (rows - 1) * self.stride[0] + self.dilation[0] * (self.kernel[0] - 1) + 1
        band = x.new_zeros(images, x.shape[1], span, self.padding[1] + x.shape[3] + self.padding[3])
        columns = x.new_empty(images, len(kept) + 1, rows, wide)
        columns[:, -1] = 1
        places, views = self._places(band, kept), self._views(band, rows, wide)
        for tile in range(tiles):
            begin = min(tile * rows, high - rows)  # the last tile ends with the image
            for image in range(0, len(x), images):
                self._load(band, x[image:image + images], begin)
                target = out[image:image + images].flatten(2)[:, :, begin * wide:(begin + rows) * wide]
                if images == 1:
                    torch.index_select(views[0], 0, places, out=columns[0, :-1])
                    torch.mm(weight, columns[0].flatten(1), out=target[0])
                else:
                    columns[:, :-1] = views.index_select(1, places)
                    target.copy_(weight @ columns.flatten(2))

    def _load(self, band: Tensor, x: Tensor, begin: int) -> None:
        """Copies to `band` what the output's rows from `begin` on read; beyond the image there are zeros."""
        top, left = self.padding[:2]
        first = begin * self.stride[0] - top  # the image's row that is the band's first
        low = min(max(first, 0), x.shape[2])
        high = max(low, min(first + band.shape[2], x.shape[2]))
        if low > first:
            band[:, :, :low - first] = 0
        if high < first + band.shape[2]:
            band[:, :, high - first:] = 0
        band[:, :, low - first:high - first, left:left + x.shape[3]] = x[:, :, low:high]

    def _places(self, band: Tensor, kept: Tensor) -> Tensor:
        """Where in an image of `band` each kept column's first value is."""
        (high, wide), (down, right) = self.kernel, self.dilation
        channels, rows, shifts = (torch.arange(count, device=band.device) * step for count, step in (
            (self.channels, band.stride(1)), (high, down * band.stride(2)), (wide, right)))
        return (channels[:, None, None] + rows[:, None] + shifts).flatten()[kept]

    def _views(self, band: Tensor, rows: int, width: int) -> Tensor:
        """(images, places, rows, width): what the windows see of `band` from each place, without a copy."""
        size, step = band[0].numel(), self.stride[0] * band.shape[3]
        places = size - (rows - 1) * step - (width - 1) * self.stride[1]
        return band.as_strided((len(band), places, rows, width), (size, 1, step, self.stride[1]))


class BlockMaxPool2d(nn.Module):
    """Max pooling of blocks of `size` (h, w) that do not overlap, those at the end cut off by the border.

    As nn.MaxPool2d with ceil_mode. That is slow on a CPU for images stored channel by channel, as gathered convolutions
    leave them; there this compares whole rows, then columns.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def extra_repr(self) -> str:
        return f"{self.size}"

    def forward(self, x: Tensor) -> Tensor:
        high, wide = self.size
        if x.is_cuda or not x.is_contiguous() or x.shape[2] % high or x.shape[3] % wide:
            return F.max_pool2d(x, self.size, self.size, ceil_mode=True)
        y = x[:, :, ::high]
        for row in range(1, high):
            y = torch.maximum(y, x[:, :, row::high])
        z = y[..., ::wide]
        for column in range(1, wide):
            z = torch.maximum(z, y[..., column::wide])
        return z.contiguous()


class Kept(nn.Module):
    """The values (N, count) of each sample whose numbers are in the buffer `kept` (count,)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(count, dtype=torch.long))

    def extra_repr(self) -> str:
        return f"{len(self.kept)}"

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).index_select(1, self.kept)


def gathered(weight: Tensor, bias: Tensor | None = None, stride: tuple[int, int] = (1, 1),
             padding: tuple[int, int, int, int] = (0, 0, 0, 0), dilation: tuple[int, int] = (1, 1),
             groups: int = 1) -> GatheredConv2d:
    """The GatheredConv2d of a convolution's weight, whose columns of zeros (within a group) are left out."""
    packed = pack(weight, bias, groups)
    made = GatheredConv2d(weight.shape[1] * groups, len(weight), tuple(weight.shape[2:]),
                          tuple(len(kept) for _, kept in packed), stride, padding, dilation)
    for group, (matrix, kept) in enumerate(packed):
        made.get_buffer(f"weight{group}").copy_(matrix)
        made.get_buffer(f"kept{group}").copy_(kept)
    return made


def pack(weight: Tensor, bias: Tensor | None, groups: int) -> list[tuple[Tensor, Tensor]]:
    """For each group, the kept columns with the bias behind them, and their numbers."""
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    packed = []
    for rows, shifts in zip(weight.detach().chunk(groups), bias.detach().chunk(groups)):
        matrix = rows.reshape(len(rows), -1)
        kept = matrix.ne(0).any(0).nonzero().flatten()
        packed.append((torch.cat([matrix[:, kept], shifts[:, None]], 1).contiguous(), kept))
    return packed
