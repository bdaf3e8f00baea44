"""LeNet for MNIST, as in Caffe's examples.

LeCun et al., Gradient-based learning applied to document recognition, 1998.
"""

from __future__ import annotations

from typing import Any

from .parts import (
    DEPLOY,
    RATES,
    TRAIN_VAL,
    XAVIER,
    L,
    NetSpec,
    Top,
    constant,
    convolution,
    data_layers,
    deploy,
    max_pool,
    relu,
    train_val,
)

LEARNING = {"param": RATES, "weight_filler": XAVIER, "bias_filler": constant(0)}


def body(n: NetSpec) -> Top:
    """Two convolutions with pooling, two inner products."""
    convolution(n, "conv1", n.data, 20, 5, **LEARNING)
    max_pool(n, "pool1", n.conv1, 2, 2)
    convolution(n, "conv2", n.pool1, 50, 5, **LEARNING)
    max_pool(n, "pool2", n.conv2, 2, 2)
    n.ip1 = L.InnerProduct(n.pool2, num_output=500, **LEARNING)
    relu(n, "relu1", n.ip1)
    n.ip2 = L.InnerProduct(n.relu1, num_output=10, **LEARNING)
    return n.ip2


@DEPLOY.add("lenet")
def lenet_deploy() -> Any:
    """LeNet on batches of 64 images."""
    return deploy("LeNet", (64, 1, 28, 28), body)


@TRAIN_VAL.add("lenet")
def lenet_train_val() -> Any:
    """LeNet on MNIST, pixels scaled to [0, 1)."""
    n = NetSpec()
    data_layers(n, ("examples/mnist/mnist_train_lmdb", "examples/mnist/mnist_test_lmdb"), (64, 100), name="mnist",
                scale=1 / 256)
    return train_val("LeNet", n, body)
