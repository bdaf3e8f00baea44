"""A small net with layers in place, its weights, and the same function as ONNX and torch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from caffe_compat.net import Net

PROTOTXT = '''name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" relu_param { negative_slope: 0.1 } }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "pool1" top: "ip"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
'''
SPEC = "small.prototxt:small.caffemodel"


def write_small(folder: Path, seed: int = 3) -> Net:
    """small.prototxt and small.caffemodel."""
    (folder / "small.prototxt").write_text(PROTOTXT)
    net = Net(folder / "small.prototxt", seed=seed)
    net.save(folder / "small.caffemodel")
    return net


class Small(nn.Module):
    """The same, by hand."""

    OUTPUTS = ("ip",)
    BLOBS = {"conv1": "relu1", "pool1": "pool1"}  # noqa: RUF012

    def __init__(self, net: Net, slope: float = 0.1) -> None:
        super().__init__()
        self.conv1, self.relu1, self.pool1 = nn.Conv2d(3, 4, 3), nn.LeakyReLU(slope), nn.MaxPool2d(2)
        self.ip = nn.Linear(36, 5)
        for name in ("conv1", "ip"):
            weight, bias = (blob.tensor.detach() for blob in net.params[name])
            getattr(self, name).load_state_dict({"weight": weight, "bias": bias})

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        return self.ip(self.pool1(self.relu1(self.conv1(data))).flatten(1))


def write_onnx(path: Path, net: Net, slope: float = 0.1) -> None:
    """The same as an ONNX file, with the names of all blobs and any batch size."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = [numpy_helper.from_array(blob.data.copy(), f"{name}/{j}") for name, blobs in net.params.items()
               for j, blob in enumerate(blobs)]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["data", "conv1/0", "conv1/1"], ["conv1.v0"]),
         helper.make_node("LeakyRelu", ["conv1.v0"], ["conv1"], alpha=slope),
         helper.make_node("MaxPool", ["conv1"], ["pool1"], kernel_shape=[2, 2], strides=[2, 2]),
         helper.make_node("Flatten", ["pool1"], ["flat"]),
         helper.make_node("Gemm", ["flat", "ip/0", "ip/1"], ["ip"], transB=1)],
        "small", [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("ip", TensorProto.FLOAT, ["N", 5])], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
