"""Convolution by Caffe's own algorithm: im2col and a matrix product for each image, gradients added image by image.

Faster algorithms round differently, by a few units in the last place. That is nothing to a trained net, but over
thousands of iterations the runs drift apart, and a decision that hangs on a tie may fall one iteration later. Nets built
with `caffe_arithmetic` use this one, to be compared with runs of Caffe itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .windows import Window


def convolve_images(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, group: int) -> Tensor:
    """Cross-correlation over two spatial axes; shapes as in `torch.nn.functional.conv2d`."""
    return ImageProducts.apply(x, weight, bias, window, group)


class ImageProducts(torch.autograd.Function):
    """y[n] = W col(x[n]) + b;  dW = sum over n, in order, of dy[n] col(x[n])^T;  dx[n] = im(W^T dy[n])."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, group: int) -> Tensor:
        settings = {"dilation": window.dilation, "padding": window.pad, "stride": window.stride}
        columns = F.unfold(x.contiguous(), window.kernel, **settings)
        columns = columns.unflatten(1, (group, -1))
        kernels = weight.reshape(group, weight.shape[0] // group, -1).contiguous()
        sizes = [(n + 2 * p - e) // s + 1 for n, p, e, s in zip(x.shape[2:], window.pad, window.extent, window.stride)]
        y = torch.matmul(kernels, columns).flatten(1, 2)
        if bias is not None:
            y.add_(bias[:, None])
        ctx.save_for_backward(columns, kernels)
        ctx.shapes = x.shape, weight.shape, bias is not None
        ctx.window, ctx.settings = window, settings
        return y.unflatten(2, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        columns, kernels = ctx.saved_tensors
        x_shape, weight_shape, has_bias = ctx.shapes
        grad = grad.contiguous().flatten(2).unflatten(1, (kernels.shape[0], -1))
        weight_grad = torch.zeros_like(kernels)
        bias_grad = grad.new_zeros(weight_shape[0]) if has_bias else None
        ones = grad.new_ones(grad.shape[-1])
        for image, image_columns in zip(grad, columns):
            weight_grad.baddbmm_(image, image_columns.transpose(1, 2))
            if has_bias:
                bias_grad.addmv_(image.flatten(0, 1), ones)
        x_grad = None
        if ctx.needs_input_grad[0]:
            products = torch.matmul(kernels.transpose(1, 2), grad).flatten(1, 2)
            x_grad = F.fold(products, x_shape[2:], ctx.window.kernel, **ctx.settings)
        return x_grad, weight_grad.reshape(weight_shape), bias_grad, None, None
