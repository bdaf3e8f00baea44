"""What the architectures share: common groups of layers, and the frame of a deploy and a train_val definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from caffe_compat.graph import TEST, TRAIN
from caffe_compat.pycaffe.net_spec import NetSpec, Top
from caffe_compat.pycaffe.net_spec import layers as L
from caffe_compat.pycaffe.net_spec import params as P
from caffe_compat.registry import Registry

#: Makes a NetParameter.
Definition = Callable[[], Any]
#: Adds the layers that follow `n.data` and returns the last of them: the scores of the classes.
Body = Callable[[NetSpec], Top]

DEPLOY: Registry[Definition] = Registry("deploy definition")
TRAIN_VAL: Registry[Definition] = Registry("train_val definition")

#: Biases learn twice as fast as weights; in the ImageNet nets they do not decay.
RATES = [{"lr_mult": 1}, {"lr_mult": 2}]
RATES_AND_DECAY = [{"lr_mult": 1, "decay_mult": 1}, {"lr_mult": 2, "decay_mult": 0}]

XAVIER = {"type": "xavier"}
IMAGENET = ("examples/imagenet/ilsvrc12_train_lmdb", "examples/imagenet/ilsvrc12_val_lmdb")
IMAGENET_MEAN_FILE = "data/ilsvrc12/imagenet_mean.binaryproto"
IMAGENET_MEAN_BGR = [104, 117, 123]


def gaussian(std: float) -> dict[str, Any]:
    """The filler of a normal distribution around 0."""
    return {"type": "gaussian", "std": std}


def constant(value: float) -> dict[str, Any]:
    """The filler of one value."""
    return {"type": "constant", "value": value}


def convolution(n: NetSpec, name: str, bottom: Top, num_output: int, kernel_size: int, **fields: Any) -> Top:
    """A Convolution layer."""
    n[name] = L.Convolution(bottom, num_output=num_output, kernel_size=kernel_size, **fields)
    return n[name]


def relu(n: NetSpec, name: str, bottom: Top) -> Top:
    """A ReLU layer, in place."""
    n[name] = L.ReLU(bottom, in_place=True)
    return n[name]


def max_pool(n: NetSpec, name: str, bottom: Top, kernel_size: int, stride: int, **fields: Any) -> Top:
    """A MAX Pooling layer."""
    n[name] = L.Pooling(bottom, pool=P.Pooling.MAX, kernel_size=kernel_size, stride=stride, **fields)
    return n[name]


def average_pool(n: NetSpec, name: str, bottom: Top, **fields: Any) -> Top:
    """An AVE Pooling layer; without a kernel_size it covers the whole image."""
    n[name] = L.Pooling(bottom, pool=P.Pooling.AVE, **(fields or {"global_pooling": True}))
    return n[name]


def local_response(n: NetSpec, name: str, bottom: Top) -> Top:
    """The LRN layer of the ImageNet nets, across channels."""
    n[name] = L.LRN(bottom, local_size=5, alpha=1e-4, beta=0.75)
    return n[name]


def batch_norm(n: NetSpec, name: str, scale: str, bottom: Top, in_place: bool = True, frozen: bool = True) -> Top:
    """A BatchNorm layer, and the Scale layer that learns its factors and biases. A `frozen` one uses the stored
    statistics, also while training; else it does so in testing alone."""
    n[name] = L.BatchNorm(bottom, in_place=in_place, **({"use_global_stats": True} if frozen else {}))
    n[scale] = L.Scale(n[name], bias_term=True, in_place=True)
    return n[scale]


def deploy(name: str, shape: Sequence[int], body: Body, *, input_layer: str = "data", softmax: bool = True) -> Any:
    """An Input layer of `shape`, `body`, and the probabilities `prob` unless without `softmax`.

    Learning rates and fillers are left out: the weights come from a file.
    """
    n = NetSpec()
    n.data = L.Input(shape={"dim": list(shape)}, name=input_layer)
    scores = body(n)
    if softmax:
        n.prob = L.Softmax(scores)
    message = n.to_proto()
    message.name = name
    for layer in message.layer:
        layer.ClearField("param")
        for settings in ("convolution_param", "inner_product_param"):
            if layer.HasField(settings):
                getattr(layer, settings).ClearField("weight_filler")
                getattr(layer, settings).ClearField("bias_filler")
    return message


def data_layers(n: NetSpec, sources: Sequence[str], batch_sizes: tuple[int, int], *, name: str = "data",
                mirror: bool = False, **transform: Any) -> None:
    """`n.data` and `n.label` from one LMDB for training and another for testing; `mirror` is for training only."""
    for phase, source, batch_size in zip((TRAIN, TEST), sources, batch_sizes, strict=True):
        flipping = {"mirror": phase == TRAIN} if mirror else {}
        fields = {"name": name, "include": {"phase": phase}, "transform_param": {**flipping, **transform},
                  "source": source, "batch_size": batch_size, "backend": P.Data.LMDB}
        if phase == TRAIN:
            n.data, n.label = L.Data(ntop=2, **fields)
        else:  # tops of the same names, which only a layer that names them itself can have
            n.data_when_testing = L.Data(ntop=0, top=["data", "label"], **fields)


def accuracy(n: NetSpec, name: str, scores: Top, **fields: Any) -> None:
    """An Accuracy layer for the TEST phase."""
    n[name] = L.Accuracy(scores, n.label, include={"phase": TEST}, **fields)


def train_val(name: str, n: NetSpec, body: Body, *, top_5: bool = False) -> Any:
    """The data layers in `n`, then `body`, `accuracy` (with `top_5` also `accuracy_top_5`) and `loss`."""
    scores = body(n)
    accuracy(n, "accuracy", scores)
    if top_5:
        accuracy(n, "accuracy_top_5", scores, top_k=5)
    n.loss = L.SoftmaxWithLoss(scores, n.label)
    message = n.to_proto()
    message.name = name
    return message
