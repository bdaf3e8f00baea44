"""ResNet-50, -101 and -152 as the authors published them; and ResNet-34 and the CIFAR ResNets, for training.

He et al., Deep residual learning for image recognition, 2015. The authors published no definitions of the latter: they
are written in the names and the order of layers of the former. Shortcuts that change shape are 1x1 convolutions.
"""

from __future__ import annotations

from functools import partial
from string import ascii_lowercase
from typing import Any

from .parts import DEPLOY, L, NetSpec, Top, average_pool, batch_norm, convolution, deploy, max_pool, relu

#: The number of bottleneck units in each of the stages 2 to 5.
UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


#: The number of two-convolution units in each stage of the ImageNet ResNet-34, and of the CIFAR ResNet-56.
BASIC_UNITS = {34: (3, 4, 6, 3), 56: (9, 9, 9)}

MSRA = {"weight_filler": {"type": "msra"}}


def _unit_names(depth: int, stage: int, count: int) -> list[str]:
    """a, b, c...; in the stages 3 and 4 of the deeper nets a, b1, b2..."""
    if depth > 50 and stage in (3, 4):
        return ["a", *(f"b{k}" for k in range(1, count))]
    return list(ascii_lowercase[:count])


def _conv_norm(n: NetSpec, unit: str, branch: str, bottom: Top, num_output: int, kernel_size: int,
               **fields: Any) -> Top:
    top = convolution(n, f"res{unit}_{branch}", bottom, num_output, kernel_size, bias_term=False, **fields)
    return batch_norm(n, f"bn{unit}_{branch}", f"scale{unit}_{branch}", top)


def _bottleneck(n: NetSpec, unit: str, bottom: Top, width: int, stride: int | None) -> Top:
    """1x1, 3x3 and 1x1 convolutions around a shortcut; a stage's first unit has a `stride`, and a convolution in its
    shortcut."""
    strided = {"stride": stride} if stride and stride > 1 else {}
    shortcut = _conv_norm(n, unit, "branch1", bottom, 4 * width, 1, **strided) if stride else bottom
    top = _conv_norm(n, unit, "branch2a", bottom, width, 1, **strided)
    top = relu(n, f"res{unit}_branch2a_relu", top)
    top = _conv_norm(n, unit, "branch2b", top, width, 3, pad=1)
    top = relu(n, f"res{unit}_branch2b_relu", top)
    top = _conv_norm(n, unit, "branch2c", top, 4 * width, 1)
    n[f"res{unit}"] = L.Eltwise(shortcut, top)
    return relu(n, f"res{unit}_relu", n[f"res{unit}"])


def body(n: NetSpec, depth: int) -> Top:
    """A strided convolution, four stages of bottleneck units, and a classifier."""
    bias = {} if depth == 50 else {"bias_term": False}  # only ResNet-50's first convolution has one
    top = convolution(n, "conv1", n.data, 64, 7, pad=3, stride=2, **bias)
    top = relu(n, "conv1_relu", batch_norm(n, "bn_conv1", "scale_conv1", top))
    top = max_pool(n, "pool1", top, 3, 2)
    for stage, count in enumerate(UNITS[depth], start=2):
        for k, name in enumerate(_unit_names(depth, stage, count)):
            stride = None if k else 1 if stage == 2 else 2
            top = _bottleneck(n, f"{stage}{name}", top, 64 << (stage - 2), stride)
    top = average_pool(n, "pool5", top, kernel_size=7, stride=1)
    n.fc1000 = L.InnerProduct(top, num_output=1000)
    return n.fc1000


def resnet_deploy(depth: int, **frame: Any) -> Any:
    """ResNet of `depth` layers, on one image."""
    return deploy(f"ResNet-{depth}", (1, 3, 224, 224), partial(body, depth=depth), **frame)


def _basic_unit(n: NetSpec, unit: str, bottom: Top, width: int, stride: int, project: bool) -> Top:
    """Two 3x3 convolutions around a shortcut, with a convolution in it if it has to change the shape."""
    strided = {"stride": stride} if stride > 1 else {}

    def conv_norm(branch: str, bottom: Top, kernel_size: int, **fields: Any) -> Top:
        top = convolution(n, f"res{unit}_{branch}", bottom, width, kernel_size, bias_term=False, **fields, **MSRA)
        return batch_norm(n, f"bn{unit}_{branch}", f"scale{unit}_{branch}", top, frozen=False)

    shortcut = conv_norm("branch1", bottom, 1, **strided) if project else bottom
    top = relu(n, f"res{unit}_branch2a_relu", conv_norm("branch2a", bottom, 3, pad=1, **strided))
    top = conv_norm("branch2b", top, 3, pad=1)
    n[f"res{unit}"] = L.Eltwise(shortcut, top)
    return relu(n, f"res{unit}_relu", n[f"res{unit}"])


def basic_body(n: NetSpec, depth: int, classes: int) -> Top:
    """ResNet-34 for ImageNet, or ResNet-56 for CIFAR: a convolution, stages of two-convolution units, a classifier."""
    large = depth == 34
    first, width = (2, 64) if large else (1, 16)  # the first stage's number: the papers' conv2_x, and 1 for CIFAR
    kernel = {"kernel_size": 7, "pad": 3, "stride": 2} if large else {"kernel_size": 3, "pad": 1}
    top = convolution(n, "conv1", n.data, width, bias_term=False, **kernel, **MSRA)
    top = relu(n, "conv1_relu", batch_norm(n, "bn_conv1", "scale_conv1", top, frozen=False))
    if large:
        top = max_pool(n, "pool1", top, 3, 2)
    for stage, count in enumerate(BASIC_UNITS[depth]):
        for k, name in enumerate(ascii_lowercase[:count]):
            halves = stage > 0 and k == 0
            top = _basic_unit(n, f"{first + stage}{name}", top, width << stage, 2 if halves else 1, halves)
    top = average_pool(n, f"pool{first + len(BASIC_UNITS[depth])}", top)
    classifier = f"fc{classes}"
    n[classifier] = L.InnerProduct(top, num_output=classes, **MSRA, bias_filler={"type": "constant"})
    return n[classifier]


for _depth in UNITS:
    DEPLOY.add(f"resnet{_depth}")(partial(resnet_deploy, _depth, input_layer="input"))
#: The net of IncReg's experiments ends with the scores.
DEPLOY.add("resnet50_pruning")(partial(resnet_deploy, 50, softmax=False))
