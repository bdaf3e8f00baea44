"""GoogLeNet (Szegedy et al., Going deeper with convolutions, 2014), as in Caffe's model zoo."""

from __future__ import annotations

from typing import Any

from .parts import (
    DEPLOY,
    IMAGENET,
    IMAGENET_MEAN_BGR,
    RATES_AND_DECAY,
    TRAIN_VAL,
    XAVIER,
    L,
    NetSpec,
    Top,
    accuracy,
    average_pool,
    constant,
    convolution,
    data_layers,
    deploy,
    local_response,
    max_pool,
    relu,
)

LEARNING = {"param": RATES_AND_DECAY, "weight_filler": XAVIER, "bias_filler": constant(0.2)}
CLASSIFIER = {**LEARNING, "bias_filler": constant(0)}

#: Filters of each inception module: 1x1; 3x3 and 5x5, each with the 1x1 that reduces its input; after pooling.
#: "pool" stands for the pooling layer between two groups of modules.
MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
#: The modules after which the image is halved, and those whose output an auxiliary classifier learns from.
POOLED = {"3b": "pool3/3x3_s2", "4e": "pool4/3x3_s2"}
AUXILIARY = {"4a": "loss1", "4d": "loss2"}


def _conv_relu(n: NetSpec, part: str, name: str, bottom: Top, num_output: int, kernel_size: int, **fields: Any) -> Top:
    """`<part>/<name>` and its ReLU, which the published definition calls `<part>/relu_<name>`."""
    top = convolution(n, f"{part}/{name}", bottom, num_output, kernel_size, **fields, **LEARNING)
    return relu(n, f"{part}/relu_{name.removesuffix('_s2')}", top)


def _inception(n: NetSpec, part: str, bottom: Top, filters: tuple[int, ...]) -> Top:
    ones, reduce3, threes, reduce5, fives, pooled = filters
    branches = [_conv_relu(n, part, "1x1", bottom, ones, 1)]
    top = _conv_relu(n, part, "3x3_reduce", bottom, reduce3, 1)
    branches.append(_conv_relu(n, part, "3x3", top, threes, 3, pad=1))
    top = _conv_relu(n, part, "5x5_reduce", bottom, reduce5, 1)
    branches.append(_conv_relu(n, part, "5x5", top, fives, 5, pad=2))
    top = max_pool(n, f"{part}/pool", bottom, 3, 1, pad=1)
    branches.append(_conv_relu(n, part, "pool_proj", top, pooled, 1))
    n[f"{part}/output"] = L.Concat(*branches)
    return n[f"{part}/output"]


def _scores(n: NetSpec, part: str, top: Top) -> Top:
    n[f"{part}/classifier"] = L.InnerProduct(top, num_output=1000, **CLASSIFIER)
    return n[f"{part}/classifier"]


def _losses(n: NetSpec, part: str, scores: Top, loss: str, loss_weight: float) -> None:
    n[f"{part}/{part}"] = L.SoftmaxWithLoss(scores, n.label, name=f"{part}/{loss}", loss_weight=loss_weight)
    accuracy(n, f"{part}/top-1", scores)
    accuracy(n, f"{part}/top-5", scores, top_k=5)


def _auxiliary(n: NetSpec, part: str, top: Top) -> None:
    """A classifier half-way, which helps the lower layers learn."""
    top = average_pool(n, f"{part}/ave_pool", top, kernel_size=5, stride=3)
    top = _conv_relu(n, part, "conv", top, 128, 1)
    n[f"{part}/fc"] = L.InnerProduct(top, num_output=1024, **LEARNING)
    top = relu(n, f"{part}/relu_fc", n[f"{part}/fc"])
    n[f"{part}/drop_fc"] = L.Dropout(top, dropout_ratio=0.7, in_place=True)
    _losses(n, part, _scores(n, part, n[f"{part}/drop_fc"]), "loss", 0.3)


def body(n: NetSpec, auxiliary: bool = False) -> Top:
    """The convolutional stem, nine inception modules, and the classifier; the auxiliary ones are for training."""
    top = _conv_relu(n, "conv1", "7x7_s2", n.data, 64, 7, pad=3, stride=2)
    top = local_response(n, "pool1/norm1", max_pool(n, "pool1/3x3_s2", top, 3, 2))
    top = _conv_relu(n, "conv2", "3x3_reduce", top, 64, 1)
    top = _conv_relu(n, "conv2", "3x3", top, 192, 3, pad=1)
    top = max_pool(n, "pool2/3x3_s2", local_response(n, "conv2/norm2", top), 3, 2)
    for module, filters in MODULES.items():
        top = _inception(n, f"inception_{module}", top, filters)
        if module in POOLED:
            top = max_pool(n, POOLED[module], top, 3, 2)
        if auxiliary and module in AUXILIARY:
            _auxiliary(n, AUXILIARY[module], top)
    top = average_pool(n, "pool5/7x7_s1", top, kernel_size=7, stride=1)
    n["pool5/drop_7x7_s1"] = L.Dropout(top, dropout_ratio=0.4, in_place=True)
    return _scores(n, "loss3", n["pool5/drop_7x7_s1"])


@DEPLOY.add("googlenet")
def googlenet_deploy() -> Any:
    """GoogLeNet without its auxiliary classifiers, on ten crops."""
    return deploy("GoogleNet", (10, 3, 224, 224), body)


@TRAIN_VAL.add("googlenet")
def googlenet_train_val() -> Any:
    """GoogLeNet with three classifiers, on ImageNet less the mean colour."""
    n = NetSpec()
    data_layers(n, IMAGENET, (32, 50), mirror=True, crop_size=224, mean_value=IMAGENET_MEAN_BGR)
    _losses(n, "loss3", body(n, auxiliary=True), "loss3", 1)
    message = n.to_proto()
    message.name = "GoogleNet"
    return message
