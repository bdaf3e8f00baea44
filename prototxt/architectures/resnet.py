"""ResNet-50, -101 and -152, as the authors published them.

He et al., Deep residual learning for image recognition, 2015.
"""

from __future__ import annotations

from functools import partial
from string import ascii_lowercase
from typing import Any

from .parts import DEPLOY, L, NetSpec, Top, average_pool, batch_norm, convolution, deploy, max_pool, relu

#: The number of bottleneck units in each of the stages 2 to 5.
UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


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


for _depth in UNITS:
    DEPLOY.add(f"resnet{_depth}")(partial(resnet_deploy, _depth, input_layer="input"))
#: The net of IncReg's experiments ends with the scores.
DEPLOY.add("resnet50_pruning")(partial(resnet_deploy, 50, softmax=False))
