"""The nets of the pruning experiments, for training: the reference's settings of every layer, and the data of each.

`EXPERIMENTS` holds, by the name of the folder `prototxt/<name>/`, functions that give the text of its files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from functools import partial
from typing import Any

from caffe_compat import proto
from caffe_compat.registry import Registry

from . import alexnet, cifar10, resnet, vgg
from .parts import Body, NetSpec, data_layers, deploy, train_val

#: File names and texts.
Files = dict[str, str]
EXPERIMENTS: Registry[Callable[[], Files]] = Registry("experiment")

#: What a layer's prune_param says, by patterns of layer names; the first that matches holds.
Settings = Mapping[str, Mapping[str, Any]]

ILSVRC12 = "ilsvrc12_train_lmdb", "ilsvrc12_val_lmdb"
MEAN_FILE = {"mean_file": "imagenet_mean.binaryproto"}
#: The mean colours: VGG's, (B, G, R); CIFAR-10's and CIFAR-100's (R, G, B), with 1 / 62 and 1 / 68, about their spread.
VGG_COLOUR = [103.939, 116.779, 123.68]
CIFAR10_COLOUR = {"mean_value": [125.3, 123.0, 113.9], "scale": 0.01613}
CIFAR100_COLOUR = {"mean_value": [129.3, 124.1, 112.4], "scale": 0.01471}

#: prune_ratio_step of the reference's files.
VGG16_STEPS = {
    "conv1_2": 0.5372, "conv2_1": 0.5006, "conv2_2": 0.5052, "conv3_1": 0.486, "conv3_2": 0.5065, "conv3_3": 0.5048,
    "conv4_1": 0.483, "conv4_2": 0.5047, "conv4_3": 0.5039, "conv5_1": 0.4682, "conv5_2": 0.4683, "conv5_3": 0.4684,
}
#: Of a unit's branch1, where it has one, and of its branches 2a, 2b, 2c.
RESNET50_STEPS = {
    "2a": (0.4984, 0.5002, 0.5034, 0.4975), "2b": (0.4965, 0.5023, 0.4957), "2c": (0.4961, 0.5019, 0.4955),
    "3a": (0.5034, 0.4944, 0.5024, 0.4959), "3b": (0.4961, 0.5021, 0.4956), "3c": (0.496, 0.5025, 0.496),
    "3d": (0.4958, 0.5021, 0.4959),
    "4a": (0.5026, 0.4942, 0.5025, 0.4958), "4b": (0.496, 0.5023, 0.4956), "4c": (0.4957, 0.5021, 0.4956),
    "4d": (0.4956, 0.5021, 0.4956), "4e": (0.4955, 0.5021, 0.4956), "4f": (0.4955, 0.5022, 0.4958),
    "5a": (0.5016, 0.4934, 0.5021, 0.4954), "5b": (0.4955, 0.5021, 0.4954), "5c": (0.4954, 0.5023, 0.4955),
}
CONV1_STEP = 0.5132


def pruned_net(name: str, body: Body, settings: Settings, sources: tuple[str, str], batch_sizes: tuple[int, int], *,
               top_5: bool = False, **transform: Any) -> str:
    """The text of a train_val definition whose Convolution layers have the prune_param that `settings` gives them."""
    n = NetSpec()
    data_layers(n, sources, batch_sizes, **transform)
    text = proto.dump_text(train_val(name, n, body, top_5=top_5))
    message = proto.parse_text(text, "NetParameter", dialect=proto.INCREG).message
    for layer in message.layer:
        fields = next((fields for pattern, fields in settings.items() if fnmatch(layer.name, pattern)), None)
        if layer.type == "Convolution" and fields:
            for key, value in fields.items():
                setattr(layer.prune_param, key, value)
    return proto.dump_text(message)


def ratio(value: float, step: float | None = None, update: bool = True) -> dict[str, Any]:
    """A layer's prune_param."""
    return {"prune_ratio": value, **({} if update else {"IF_update_row_col": False}),
            **({} if step is None else {"prune_ratio_step": step})}


def resnet50_settings() -> Settings:
    """Rows that a sum reads do not follow pruned columns: those of conv1, every branch1 and every branch2c."""
    found = {"conv1": ratio(0.9, CONV1_STEP, update=False)}
    for unit, steps in RESNET50_STEPS.items():
        branches = ("branch1",) * (len(steps) == 4) + ("branch2a", "branch2b", "branch2c")
        for branch, step in zip(branches, steps, strict=True):
            found[f"res{unit}_{branch}"] = ratio(0.9, step, update=branch in ("branch2a", "branch2b"))
    return found


def vgg16_train_val() -> str:
    """With the reference's ratios; conv1_1 and the inner products are not pruned."""
    return pruned_net("VGG_ILSVRC_16_layers", vgg.body, {name: ratio(0.9, step) for name, step in VGG16_STEPS.items()},
                      ILSVRC12, (16, 10), top_5=True, mirror=True, crop_size=224, mean_value=VGG_COLOUR)


def resnet50_train_val() -> str:
    """With the reference's ratios. BatchNorm uses the stored statistics while training, too."""
    return pruned_net("ResNet-50", partial(resnet.body, depth=50), resnet50_settings(), ILSVRC12, (16, 10), top_5=True,
                      mirror=True, crop_size=224, **MEAN_FILE)


def resnet34_train_val() -> str:
    """Nothing is pruned but by what the solver says."""
    return pruned_net("ResNet-34", partial(resnet.basic_body, depth=34, classes=1000), {}, ILSVRC12, (16, 10), top_5=True,
                      mirror=True, crop_size=224, **MEAN_FILE)


def alexnet_train_val() -> str:
    """AlexNet as published but for the batch, with one ratio for all convolutions but the first."""
    return pruned_net("AlexNet", alexnet.alexnet_body, {"conv1": ratio(0), "*": ratio(0.9, 0.5)}, ILSVRC12, (64, 50),
                      top_5=True, mirror=True, crop_size=227, **MEAN_FILE)


def convnet_train_val() -> str:
    """cifar10_full. The solvers' prune_target decides on the ratio."""
    return pruned_net("CIFAR10_full", cifar10.full_body, {}, ("cifar10_train_lmdb", "cifar10_test_lmdb"), (100, 100),
                      mean_file="mean.binaryproto")


def resnet56_train_val() -> str:
    """As ResNet-50: rows that a sum reads do not follow."""
    settings = {"conv1": ratio(0), "*_branch2a": ratio(0.9, 0.5), "*": ratio(0.9, 0.5, update=False)}
    return pruned_net("ResNet-56", partial(resnet.basic_body, depth=56, classes=10), settings,
                      ("cifar10_pad4_train_lmdb", "cifar10_test_lmdb"), (128, 100), mirror=True, crop_size=32, **CIFAR10_COLOUR)


def vgg19_train_val() -> str:
    """Nothing is pruned but by what the solver says."""
    return pruned_net("VGG-19", partial(vgg.cifar_body, classes=100), {},
                      ("cifar100_pad4_train_lmdb", "cifar100_test_lmdb"), (256, 100), mirror=True, crop_size=32,
                      **CIFAR100_COLOUR)


def deploy_text(name: str, size: int, body: Body) -> str:
    """The text of a deploy definition for one image."""
    return proto.dump_text(deploy(name, (1, 3, size, size), body))
