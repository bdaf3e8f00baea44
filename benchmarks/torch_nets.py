"""Published networks written by hand in PyTorch, with the layers of `prototxt/<name>/deploy.prototxt` up to the scores.

`TORCH_NETS` holds the functions that make them. They are what this package's speed is measured against.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_relu(inputs: int, outputs: int, kernel: int, **settings: int) -> nn.Sequential:
    """A convolution and its ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, **settings), nn.ReLU(inplace=True))


def pool(kernel: int = 3, stride: int = 2, **settings: int) -> nn.MaxPool2d:
    """Maxima of windows, as many of them as Caffe takes."""
    return nn.MaxPool2d(kernel, stride, ceil_mode=True, **settings)


def classifier(inputs: int) -> list[nn.Module]:
    """The three inner products of AlexNet and VGG."""
    first = [nn.Flatten(), nn.Linear(inputs, 4096), nn.ReLU(inplace=True), nn.Dropout()]
    return [*first, nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(4096, 1000)]


def lenet() -> nn.Module:
    """LeNet-5 as in Caffe's examples."""
    features = [nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2)]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(800, 500), nn.ReLU(inplace=True), nn.Linear(500, 10))


class WithinChannel(nn.Module):
    """Local response normalization over 3x3 neighbours in the same channel, which torch has no layer for."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.AvgPool2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + 5e-5 * self.mean(x * x)).pow(-0.75)


def cifar10_full() -> nn.Module:
    """CIFAR-10 full."""
    def average() -> nn.Module:
        return nn.AvgPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2), pool(), nn.ReLU(inplace=True), WithinChannel(),
        conv_relu(32, 32, 5, padding=2), average(), WithinChannel(),
        conv_relu(32, 64, 5, padding=2), average(), nn.Flatten(), nn.Linear(1024, 10))


def alexnet() -> nn.Module:
    """AlexNet, normalized before pooling."""
    def norm() -> nn.Module:
        return nn.LocalResponseNorm(5, 1e-4, 0.75, 1)

    return nn.Sequential(
        conv_relu(3, 96, 11, stride=4), norm(), pool(), conv_relu(96, 256, 5, padding=2, groups=2), norm(), pool(),
        conv_relu(256, 384, 3, padding=1), conv_relu(384, 384, 3, padding=1, groups=2),
        conv_relu(384, 256, 3, padding=1, groups=2), pool(), *classifier(9216))


class Inception(nn.Module):
    """Four branches side by side; filters in the order of the GoogLeNet paper's table."""

    def __init__(self, inputs: int, ones: int, reduce3: int, threes: int, reduce5: int, fives: int,
                 pooled: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList([
            conv_relu(inputs, ones, 1),
            nn.Sequential(conv_relu(inputs, reduce3, 1), conv_relu(reduce3, threes, 3, padding=1)),
            nn.Sequential(conv_relu(inputs, reduce5, 1), conv_relu(reduce5, fives, 5, padding=2)),
            nn.Sequential(pool(3, 1, padding=1), conv_relu(inputs, pooled, 1))])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def googlenet() -> nn.Module:
    """GoogLeNet without auxiliary classifiers."""
    def norm() -> nn.Module:
        return nn.LocalResponseNorm(5, 1e-4, 0.75, 1)

    return nn.Sequential(
        conv_relu(3, 64, 7, stride=2, padding=3), pool(), norm(),
        conv_relu(64, 64, 1), conv_relu(64, 192, 3, padding=1), norm(), pool(),
        Inception(192, 64, 96, 128, 16, 32, 32), Inception(256, 128, 128, 192, 32, 96, 64), pool(),
        Inception(480, 192, 96, 208, 16, 48, 64), Inception(512, 160, 112, 224, 24, 64, 64),
        Inception(512, 128, 128, 256, 24, 64, 64), Inception(512, 112, 144, 288, 32, 64, 64),
        Inception(528, 256, 160, 320, 32, 128, 128), pool(), Inception(832, 256, 160, 320, 32, 128, 128),
        Inception(832, 384, 192, 384, 48, 128, 128),
        nn.AvgPool2d(7), nn.Dropout(0.4), nn.Flatten(), nn.Linear(1024, 1000))


def vgg16() -> nn.Module:
    """VGG-16."""
    layers: list[nn.Module] = []
    inputs = 3
    for outputs, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers.append(conv_relu(inputs, outputs, 3, padding=1))
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, *classifier(25088))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut, strided in the first, as the authors of ResNet published it."""

    def __init__(self, inputs: int, width: int, stride: int, project: bool) -> None:
        super().__init__()
        outputs = 4 * width
        self.shortcut = nn.Identity()
        if project:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.branch(x).add_(self.shortcut(x)))


def resnet50() -> nn.Module:
    """ResNet-50."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(inplace=True), pool()]
    inputs = 64
    for stage, (width, count) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for k in range(count):
            layers.append(Bottleneck(inputs, width, 2 if stage and not k else 1, not k))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AvgPool2d(7), nn.Flatten(), nn.Linear(2048, 1000))


TORCH_NETS = {net.__name__: net for net in (lenet, cifar10_full, alexnet, googlenet, vgg16, resnet50)}
