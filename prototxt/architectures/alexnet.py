"""AlexNet (Krizhevsky et al., ImageNet classification with deep convolutional neural networks, 2012), and CaffeNet.

Both as in Caffe's model zoo. CaffeNet pools before it normalizes, and starts some biases at 1 instead of 0.1.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from .parts import (
    DEPLOY,
    IMAGENET,
    IMAGENET_MEAN_FILE,
    RATES_AND_DECAY,
    TRAIN_VAL,
    L,
    NetSpec,
    Top,
    constant,
    convolution,
    data_layers,
    deploy,
    gaussian,
    local_response,
    max_pool,
    relu,
    train_val,
)

SHAPE = (10, 3, 227, 227)


def body(n: NetSpec, *, norm_first: bool, bias: float) -> Top:
    """Five convolutions, the wide ones in two groups, and three inner products."""

    def learning(std: float, bias: float) -> dict[str, Any]:
        return {"param": RATES_AND_DECAY, "weight_filler": gaussian(std), "bias_filler": constant(bias)}

    def norm_and_pool(number: int, top: Top) -> Top:
        if norm_first:
            return max_pool(n, f"pool{number}", local_response(n, f"norm{number}", top), 3, 2)
        return local_response(n, f"norm{number}", max_pool(n, f"pool{number}", top, 3, 2))

    top = convolution(n, "conv1", n.data, 96, 11, stride=4, **learning(0.01, 0))
    top = norm_and_pool(1, relu(n, "relu1", top))
    top = convolution(n, "conv2", top, 256, 5, pad=2, group=2, **learning(0.01, bias))
    top = norm_and_pool(2, relu(n, "relu2", top))
    top = relu(n, "relu3", convolution(n, "conv3", top, 384, 3, pad=1, **learning(0.01, 0)))
    top = relu(n, "relu4", convolution(n, "conv4", top, 384, 3, pad=1, group=2, **learning(0.01, bias)))
    top = relu(n, "relu5", convolution(n, "conv5", top, 256, 3, pad=1, group=2, **learning(0.01, bias)))
    top = max_pool(n, "pool5", top, 3, 2)
    for number in (6, 7):
        top = n[f"fc{number}"] = L.InnerProduct(top, num_output=4096, **learning(0.005, bias))
        top = n[f"drop{number}"] = L.Dropout(relu(n, f"relu{number}", top), dropout_ratio=0.5, in_place=True)
    n.fc8 = L.InnerProduct(top, num_output=1000, **learning(0.01, 0))
    return n.fc8


alexnet_body = partial(body, norm_first=True, bias=0.1)
caffenet_body = partial(body, norm_first=False, bias=1)


def _data() -> NetSpec:
    n = NetSpec()
    data_layers(n, IMAGENET, (256, 50), mirror=True, crop_size=227, mean_file=IMAGENET_MEAN_FILE)
    return n


DEPLOY.add("alexnet")(lambda: deploy("AlexNet", SHAPE, alexnet_body))
DEPLOY.add("caffenet")(lambda: deploy("CaffeNet", SHAPE, caffenet_body))
TRAIN_VAL.add("alexnet")(lambda: train_val("AlexNet", _data(), alexnet_body))
TRAIN_VAL.add("caffenet")(lambda: train_val("CaffeNet", _data(), caffenet_body))
