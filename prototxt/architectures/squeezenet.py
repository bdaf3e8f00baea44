"""SqueezeNet, the authors' versions 1.0 and 1.1.

Iandola et al., SqueezeNet: AlexNet-level accuracy with 50x fewer parameters, 2016.
"""

from __future__ import annotations

from typing import Any

from .parts import DEPLOY, L, NetSpec, Top, average_pool, convolution, deploy, max_pool, relu

SHAPE = (10, 3, 227, 227)

#: Filters of each fire module: of the squeezing layer, and of each of the two expanding ones.
FIRES = {2: (16, 64), 3: (16, 64), 4: (32, 128), 5: (32, 128), 6: (48, 192), 7: (48, 192), 8: (64, 256), 9: (64, 256)}


def _fire(n: NetSpec, number: int, bottom: Top) -> Top:
    squeeze, expand = FIRES[number]

    def conv_relu(name: str, bottom: Top, num_output: int, kernel_size: int, **fields: Any) -> Top:
        top = convolution(n, f"fire{number}/{name}", bottom, num_output, kernel_size, **fields)
        return relu(n, f"fire{number}/relu_{name}", top)

    top = conv_relu("squeeze1x1", bottom, squeeze, 1)
    ones = conv_relu("expand1x1", top, expand, 1)
    threes = conv_relu("expand3x3", top, expand, 3, pad=1)
    n[f"fire{number}/concat"] = L.Concat(ones, threes)
    return n[f"fire{number}/concat"]


def body(n: NetSpec, first: tuple[int, int], pooled: tuple[int, ...], last: dict[str, int]) -> Top:
    """A convolution of `first` (filters, kernel size), fire modules with pooling after the `pooled` ones, and a
    convolution with the fields `last` whose averages are the scores."""
    top = relu(n, "relu_conv1", convolution(n, "conv1", n.data, *first, stride=2))
    top = max_pool(n, "pool1", top, 3, 2)
    for number in FIRES:
        top = _fire(n, number, top)
        if number in pooled:
            top = max_pool(n, f"pool{number}", top, 3, 2)
    n.drop9 = L.Dropout(top, dropout_ratio=0.5, in_place=True)
    top = relu(n, "relu_conv10", convolution(n, "conv10", n.drop9, 1000, 1, **last))
    return average_pool(n, "pool10", top)


@DEPLOY.add("squeezenet_v1.0")
def squeezenet_1_0_deploy() -> Any:
    """Version 1.0 on ten crops."""
    return deploy("", SHAPE, lambda n: body(n, (96, 7), (4, 8), {"pad": 1}), input_layer="input")


@DEPLOY.add("squeezenet_v1.1")
def squeezenet_1_1_deploy() -> Any:
    """Version 1.1, as accurate with 2.4 times fewer multiply-adds, on ten crops."""
    return deploy("", SHAPE, lambda n: body(n, (64, 3), (3, 5), {}))
