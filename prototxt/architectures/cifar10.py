"""The two CIFAR-10 nets of Caffe's examples, after A. Krizhevsky's cuda-convnet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .parts import (
    DEPLOY,
    RATES,
    TRAIN_VAL,
    L,
    NetSpec,
    P,
    Top,
    average_pool,
    constant,
    convolution,
    data_layers,
    deploy,
    gaussian,
    max_pool,
    relu,
    train_val,
)

SHAPE = (1, 3, 32, 32)


def _block(n: NetSpec, number: int, bottom: Top, num_output: int, std: float, rates: list | None = RATES) -> Top:
    """Convolution, pooling and ReLU; the first block takes maxima, before its ReLU."""
    learning = {"param": rates} if rates else {}
    top = convolution(n, f"conv{number}", bottom, num_output, 5, pad=2, **learning,
                      weight_filler=gaussian(std), bias_filler=constant(0))
    if number == 1:
        return relu(n, "relu1", max_pool(n, "pool1", top, 3, 2))
    return average_pool(n, f"pool{number}", relu(n, f"relu{number}", top), kernel_size=3, stride=2)


def quick_body(n: NetSpec) -> Top:
    """Three convolution blocks, two inner products."""
    top = _block(n, 1, n.data, 32, 1e-4)
    top = _block(n, 2, top, 32, 0.01)
    top = _block(n, 3, top, 64, 0.01)
    for name, num_output in (("ip1", 64), ("ip2", 10)):
        top = n[name] = L.InnerProduct(top, num_output=num_output, param=RATES,
                                       weight_filler=gaussian(0.1), bias_filler=constant(0))
    return top


def full_body(n: NetSpec) -> Top:
    """Three convolution blocks, the first two normalized within channels, and a strongly decaying inner product."""
    top = n.data
    for number, std in ((1, 1e-4), (2, 0.01)):
        top = _block(n, number, top, 32, std)
        top = n[f"norm{number}"] = L.LRN(top, local_size=3, alpha=5e-5, beta=0.75, norm_region=P.LRN.WITHIN_CHANNEL)
    top = _block(n, 3, top, 64, 0.01, rates=None)
    n.ip1 = L.InnerProduct(top, num_output=10, weight_filler=gaussian(0.01), bias_filler=constant(0),
                           param=[{"lr_mult": 1, "decay_mult": 250}, {"lr_mult": 2, "decay_mult": 0}])
    return n.ip1


def _train_val(name: str, body: Callable[[NetSpec], Top]) -> Any:
    n = NetSpec()
    data_layers(n, ("examples/cifar10/cifar10_train_lmdb", "examples/cifar10/cifar10_test_lmdb"), (100, 100),
                name="cifar", mean_file="examples/cifar10/mean.binaryproto")
    return train_val(name, n, body)


@DEPLOY.add("cifar10_quick")
def quick_deploy() -> Any:
    """CIFAR-10 quick on one image."""
    return deploy("CIFAR10_quick_test", SHAPE, quick_body)


@TRAIN_VAL.add("cifar10_quick")
def quick_train_val() -> Any:
    """CIFAR-10 quick on the images less their mean."""
    return _train_val("CIFAR10_quick", quick_body)


@DEPLOY.add("cifar10_full")
def full_deploy() -> Any:
    """CIFAR-10 full on one image."""
    return deploy("CIFAR10_full_deploy", SHAPE, full_body)


@TRAIN_VAL.add("cifar10_full")
def full_train_val() -> Any:
    """CIFAR-10 full on the images less their mean."""
    return _train_val("CIFAR10_full", full_body)
