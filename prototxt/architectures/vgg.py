"""VGG-16 (Simonyan and Zisserman, Very deep convolutional networks for large-scale image recognition, 2014)."""

from __future__ import annotations

from typing import Any

from .parts import DEPLOY, L, NetSpec, Top, convolution, deploy, max_pool, relu

#: Filters and number of the 3x3 convolutions of each group; a pooling layer halves the image after it.
GROUPS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


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


@DEPLOY.add("vgg16")
def vgg16_deploy() -> Any:
    """VGG-16 on one image, up to the scores: the net of IncReg's experiments."""
    return deploy("VGG_ILSVRC_16_layers", (1, 3, 224, 224), body, softmax=False)
