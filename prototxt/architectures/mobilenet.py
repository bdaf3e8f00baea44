"""MobileNet (Howard et al., 2017) and MobileNetV2 (Sandler et al., 2018), as ported to Caffe by shicai."""

from __future__ import annotations

from typing import Any

from .parts import DEPLOY, L, NetSpec, Top, average_pool, batch_norm, convolution, deploy, relu

SHAPE = (1, 3, 224, 224)

#: Version 1: the blocks' filters and strides.
SEPARABLE = {
    "2_1": (64, 1), "2_2": (128, 2), "3_1": (128, 1), "3_2": (256, 2), "4_1": (256, 1), "4_2": (512, 2),
    "5_1": (512, 1), "5_2": (512, 1), "5_3": (512, 1), "5_4": (512, 1), "5_5": (512, 1), "5_6": (1024, 2),
    "6": (1024, 1),
}
#: Version 2: the blocks' filters and strides.
INVERTED = {
    "2_1": (16, 1), "2_2": (24, 2), "3_1": (24, 1), "3_2": (32, 2), "4_1": (32, 1), "4_2": (32, 1), "4_3": (64, 1),
    "4_4": (64, 1), "4_5": (64, 1), "4_6": (64, 1), "4_7": (96, 2), "5_1": (96, 1), "5_2": (96, 1), "5_3": (160, 2),
    "6_1": (160, 1), "6_2": (160, 1), "6_3": (320, 1),
}


class _Builder:
    """Convolutions with BatchNorm and ReLU; version 2 leaves the convolution's output as it is (`in_place` False)."""

    def __init__(self, n: NetSpec, in_place: bool) -> None:
        self.n = n
        self.in_place = in_place

    def norm(self, name: str, bottom: Top, num_output: int, kernel_size: int, **fields: Any) -> Top:
        """The convolution `conv<name>` without bias, normalized."""
        top = convolution(self.n, f"conv{name}", bottom, num_output, kernel_size, bias_term=False, **fields)
        return batch_norm(self.n, f"conv{name}/bn", f"conv{name}/scale", top, self.in_place)

    def norm_relu(self, name: str, *args: Any, **fields: Any) -> Top:
        """The same with a ReLU."""
        return relu(self.n, f"relu{name}", self.norm(name, *args, **fields))

    def depthwise(self, name: str, bottom: Top, channels: int, stride: int) -> Top:
        """A 3x3 convolution of every channel by itself, normalized, with a ReLU."""
        strided = {"stride": stride} if stride > 1 else {}
        return self.norm_relu(name, bottom, channels, 3, pad=1, group=channels, **strided)

    def classifier(self, bottom: Top) -> Top:
        """Averages over the image, and a 1x1 convolution to the scores."""
        return convolution(self.n, "fc7", average_pool(self.n, "pool6", bottom), 1000, 1)


def v1_body(n: NetSpec) -> Top:
    """Thirteen blocks of a depthwise and a 1x1 convolution."""
    builder = _Builder(n, in_place=True)
    top, channels = builder.norm_relu("1", n.data, 32, 3, pad=1, stride=2), 32
    for block, (num_output, stride) in SEPARABLE.items():
        top = builder.depthwise(f"{block}/dw", top, channels, stride)
        top, channels = builder.norm_relu(f"{block}/sep", top, num_output, 1), num_output
    return builder.classifier(top)


def v2_body(n: NetSpec) -> Top:
    """Seventeen blocks that widen the input sixfold, filter it depthwise and narrow it without a ReLU; where a block
    keeps the shape, its input is added to its output."""
    builder = _Builder(n, in_place=False)
    top, channels = builder.norm_relu("1", n.data, 32, 3, pad=1, stride=2), 32
    for block, (num_output, stride) in INVERTED.items():
        wide = channels if block == "2_1" else 6 * channels
        inner = builder.norm_relu(f"{block}/expand", top, wide, 1)
        inner = builder.depthwise(f"{block}/dwise", inner, wide, stride)
        inner = builder.norm(f"{block}/linear", inner, num_output, 1)
        if stride == 1 and num_output == channels:
            inner = n[f"block_{block}"] = L.Eltwise(top, inner)
        top, channels = inner, num_output
    return builder.classifier(builder.norm_relu("6_4", top, 1280, 1))


@DEPLOY.add("mobilenet_v1")
def mobilenet_v1_deploy() -> Any:
    """MobileNet on one image."""
    return deploy("MOBILENET", SHAPE, v1_body, input_layer="input")


@DEPLOY.add("mobilenet_v2")
def mobilenet_v2_deploy() -> Any:
    """MobileNetV2 on one image."""
    return deploy("MOBILENET_V2", SHAPE, v2_body, input_layer="input")
