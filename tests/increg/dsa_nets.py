"""The five nets of DSA's recordings as prototxt; layers are called as there, without their last `.conv`."""

from __future__ import annotations

from itertools import pairwise

INPUT = 'layer {{ name: "in" type: "Input" top: "x" input_param {{ shape {{ dim: 1 dim: 3 dim: 32 dim: 32 }} }} }}\n'.format()


class Text:
    """Collects layers; every method returns the name of a top."""

    def __init__(self) -> None:
        self.text = INPUT

    def layer(self, kind: str, name: str, bottoms: list[str], more: str = "") -> str:
        """Any layer."""
        bottom = " ".join(f'bottom: "{blob}"' for blob in bottoms)
        self.text += f'layer {{ name: "{name}" type: "{kind}" {bottom} top: "{name}" {more} }}\n'
        return name

    def conv(self, name: str, bottom: str, outputs: int, kernel: int = 3, stride: int = 1, group: int = 1,
             relu: bool = True) -> str:
        """Convolution, BatchNorm, Scale, ReLU."""
        self.layer("Convolution", name, [bottom], f"convolution_param {{ num_output: {outputs} kernel_size: {kernel} "
                   f"stride: {stride} pad: {kernel // 2} group: {group} bias_term: false }}")
        top = self.layer("BatchNorm", f"{name}.bn", [name])
        top = self.layer("Scale", f"{name}.scale", [top], "scale_param { bias_term: true }")
        return self.layer("ReLU", f"{name}.relu", [top]) if relu else top

    def add(self, name: str, *bottoms: str, relu: bool = True) -> str:
        """The sum of blobs."""
        top = self.layer("Eltwise", name, list(bottoms))
        return self.layer("ReLU", f"{name}.relu", [top]) if relu else top

    def pad(self, name: str, bottom: str, channels: int, size: int) -> str:
        """Half the pixels each way, and zeros for as many channels again, half of them before, half behind."""
        top = self.layer("Pooling", f"{name}.pool", [bottom], "pooling_param { pool: AVE kernel_size: 2 stride: 2 }")
        shape = f"dummy_data_param {{ shape {{ dim: 1 dim: {channels // 2} dim: {size} dim: {size} }} }}"
        before, behind = (self.layer("DummyData", f"{name}.{part}", [], shape) for part in ("before", "behind"))
        return self.layer("Concat", name, [before, top, behind])

    def classifier(self, bottom: str) -> str:
        """Global pooling and a linear layer."""
        top = self.layer("Pooling", "pool", [bottom], "pooling_param { pool: AVE global_pooling: true }")
        self.layer("InnerProduct", "linear", [top], "inner_product_param { num_output: 10 }")
        return self.text


def resnet(blocks: list[int], channels: list[int], padded: bool = False) -> str:
    """Basic blocks; where the shape changes the shortcut is a 1x1 convolution, or zeros are padded."""
    net = Text()
    top, before, size = net.conv("stem", "x", channels[0]), channels[0], 32
    for stage, (count, outputs) in enumerate(zip(blocks, channels), 1):
        for block in range(count):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            size //= stride
            inner = net.conv(f"{name}.op_1", top, outputs, stride=stride)
            shortcut = top
            if before != outputs:
                shortcut = (net.pad(f"{name}.skip", top, before, size) if padded
                            else net.conv(f"{name}.skip_op", top, outputs, 1, stride, relu=False))
            top = net.add(f"{name}.sum", net.conv(f"{name}.op_2", inner, outputs, relu=False), shortcut)
            before = outputs
    return net.classifier(top)


def mobilenet_v2() -> str:
    """Inverted residuals; a shortcut where the stride is 1, through a 1x1 convolution where channels change."""
    net = Text()
    top, before, number = net.conv("mod1", "x", 32), 32, 0
    for expansion, outputs, count, first in ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                                             (6, 160, 3, 2), (6, 320, 1, 1)):
        for block in range(count):
            name, stride, width = f"layers.{number}", first if block == 0 else 1, expansion * before
            inner = net.conv(f"{name}.mod1", top, width, 1)
            inner = net.conv(f"{name}.mod2_depthwise", inner, width, 3, stride, group=width)
            shortcut = net.conv(f"{name}.shortcut", top, outputs, 1, relu=False) if stride == 1 and before != outputs else top
            inner = net.conv(f"{name}.mod3", inner, outputs, 1, relu=False)
            top = net.add(f"{name}.sum", inner, shortcut, relu=False) if stride == 1 else inner
            before, number = outputs, number + 1
    return net.classifier(net.conv("mod2", top, 1280, 1))


def vgg19() -> str:
    """A chain; numbers left out are poolings."""
    net = Text()
    numbers = [0, 1, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14, 16, 17, 18, 19]
    widths = [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
    top = net.conv("features.0", "x", 64)
    for (last, number), width in zip(pairwise(numbers), widths[1:]):
        if number > last + 1:
            top = net.layer("Pooling", f"pool{last}", [top], "pooling_param { pool: MAX kernel_size: 2 stride: 2 }")
        top = net.conv(f"features.{number}", top, width)
    return net.classifier(top)


NETS = {
    "resnet18_masked_plan1_bn": lambda: resnet([2, 2, 2, 2], [64, 128, 256, 512]),
    "cifar10_resnet20_dsconv_masked_plan1_bn": lambda: resnet([3, 3, 3], [16, 32, 64]),
    "cifar10_resnet20_masked_plan1_bn": lambda: resnet([3, 3, 3], [16, 32, 64], padded=True),
    "mobilenetv2_masked": mobilenet_v2,
    "vgg16_masked": vgg19,
}
