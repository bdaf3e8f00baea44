"""VGG-16 (Simonyan and Zisserman, Very deep convolutional networks for large-scale image recognition, 2014), and VGG-19
with BatchNorm and one inner product, as it is used for CIFAR."""

from __future__ import annotations

from typing import Any

from .parts import DEPLOY, L, NetSpec, Top, average_pool, batch_norm, constant, convolution, deploy, gaussian, max_pool, relu

#: Filters and number of the 3x3 convolutions of each group; a pooling layer halves the image after it.
GROUPS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
GROUPS_19 = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))


def body(n: NetSpec) -> Top:
    """Thirteen convolutions in five groups, and three inner products."""
    top = n.data
    for group, (num_output, count) in enumerate(GROUPS, start=1):
        for k in range(1, count + 1):
            top = relu(n, f"relu{group}_{k}", convolution(n, f"conv{group}_{k}", top, num_output, 3, pad=1))
        top = max_pool(n, f"pool{group}", top, 2, 2)
    for number in (6, 7):
        top = n[f"fc{number}"] = L.InnerProduct(top, num_output=4096)
        top = n[f"drop{number}"] = L.Dropout(relu(n, f"relu{number}", top), dropout_ratio=0.5, in_place=True)
    n.fc8 = L.InnerProduct(top, num_output=1000)
    return n.fc8


def cifar_body(n: NetSpec, classes: int) -> Top:
    """Sixteen convolutions with BatchNorm in five groups, pooled to a pixel, and one inner product."""
    top = n.data
    for group, (num_output, count) in enumerate(GROUPS_19, start=1):
        for k in range(1, count + 1):
            name = f"{group}_{k}"
            top = convolution(n, f"conv{name}", top, num_output, 3, pad=1, bias_term=False, weight_filler={"type": "msra"})
            top = relu(n, f"relu{name}", batch_norm(n, f"bn{name}", f"scale{name}", top, frozen=False))
        if group < len(GROUPS_19):
            top = max_pool(n, f"pool{group}", top, 2, 2)
    top = average_pool(n, "pool5", top)
    n[f"fc{classes}"] = L.InnerProduct(top, num_output=classes, weight_filler=gaussian(0.01), bias_filler=constant(0))
    return n[f"fc{classes}"]


@DEPLOY.add("vgg16")
def vgg16_deploy() -> Any:
    """VGG-16 on one image, up to the scores: the net of IncReg's experiments."""
    return deploy("VGG_ILSVRC_16_layers", (1, 3, 224, 224), body, softmax=False)
