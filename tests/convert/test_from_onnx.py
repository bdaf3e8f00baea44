"""ONNX to Caffe: every operator by itself and in company, against onnxruntime; what cannot be, refused with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caffe_compat import proto
from caffe_compat.errors import CaffeError, ParseError
from caffe_compat.net import Net

onnx = pytest.importorskip("onnx", reason="needs onnx (the extra `convert`)")
pytest.importorskip("onnxruntime", reason="needs onnxruntime (the extra `convert`)")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from caffe_compat.convert import to_caffe  # noqa: E402
from caffe_compat.convert.from_onnx import FROM_ONNX, ConversionError, read_onnx  # noqa: E402

#: Caffe 1.0's own layer types; those of forks are not among them.
BVLC_TYPES = {
    "AbsVal", "ArgMax", "BNLL", "BatchNorm", "Bias", "Clip", "Concat", "Convolution", "Deconvolution", "Dropout",
    "ELU", "Eltwise", "Embed", "Exp", "Flatten", "Input", "InnerProduct", "LRN", "Log", "MVN", "PReLU", "Parameter",
    "Pooling", "Power", "ReLU", "Reduction", "Reshape", "Scale", "Sigmoid", "Silence", "Slice", "Softmax", "Split",
    "TanH", "Tile",
}


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


class Builder:
    """Writes a model node by node; names results t0, t1, ..."""

    def __init__(self, opset: int = 17) -> None:
        self.opset, self.nodes, self.constants, self.inputs = opset, [], [], []

    def input(self, name: str, *shape: int | str) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def constant(self, array: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(array), f"c{len(self.constants)}"))
        return self.constants[-1].name

    def __call__(self, op: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        names = [name if isinstance(name, str) else self.constant(name) for name in inputs]
        tops = [f"t{len(self.nodes)}" + (f"_{k}" if k else "") for k in range(outputs)]
        self.nodes.append(helper.make_node(op, names, tops, **attributes))
        return tops[0] if outputs == 1 else tops

    def save(self, path: Path, *outputs: str) -> Path:
        counting = {name for node in self.nodes if node.op_type == "ArgMax" for name in node.output}
        kind = self.inputs[0].type.tensor_type.elem_type
        results = [helper.make_tensor_value_info(name, TensorProto.INT64 if name in counting else kind, None)
                   for name in outputs]
        graph = helper.make_graph(self.nodes, "net", self.inputs, results, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        onnx.save(model, path)
        return path


def convert(folder: Path, build: Builder, *outputs: str, suffix: str = "") -> Any:
    """Converts and compares on the spot (that is `to_caffe`'s own check); returns the net's definition."""
    path = build.save(folder / "model.onnx", *outputs)
    to_caffe(path, folder / f"model{suffix}")
    message = proto.read_text(folder / "model.prototxt", "NetParameter", proto.BVLC).message
    assert {layer.type for layer in message.layer} <= BVLC_TYPES
    return message


def types(message: Any) -> list[str]:
    return [layer.type for layer in message.layer[1:]]


#: One operator on x of (2, 4, 6, 5): its opset, name, further inputs, attributes and the layers it becomes.
SINGLE: list[tuple[int, str, Sequence[Any], dict[str, Any], str]] = [
    *((17, op, (), {}, layer) for op, layer in (
        ("Relu", "ReLU"), ("Sigmoid", "Sigmoid"), ("Tanh", "TanH"), ("Abs", "AbsVal"), ("Exp", "Exp"), ("Neg", "Power"),
        ("Softplus", "BNLL"), ("Reciprocal", "Power"), ("Elu", "ELU"), ("LeakyRelu", "ReLU"), ("HardSigmoid", "Power Clip"),
        ("HardSwish", "Power Clip Eltwise"), ("GlobalAveragePool", "Pooling"), ("GlobalMaxPool", "Pooling"),
        ("Softmax", "Softmax"), ("LogSoftmax", "Softmax Log"), ("Flatten", "Flatten"), ("Identity", "Split"))),
    (17, "LeakyRelu", (), {"alpha": 0.3}, "ReLU"), (17, "Elu", (), {"alpha": 0.5}, "ELU"),
    (17, "PRelu", [values(4, 1, 1)], {}, "PReLU"), (17, "PRelu", [values(1)], {}, "PReLU"),
    (17, "Clip", [np.float32(-0.5), np.float32(0.5)], {}, "Clip"), (17, "Clip", [np.float32(0)], {}, "ReLU"),
    (17, "Clip", ["", np.float32(0.2)], {}, "Clip"), (10, "Clip", [], {"min": 0.0, "max": 6.0}, "Clip"),
    (17, "Pow", [np.float32(2)], {}, "Power"), (17, "Max", [np.float32(0.1)], {}, "Clip"),
    (17, "Min", [np.float32(0.1)], {}, "Clip"), (17, "Softmax", (), {"axis": 1}, "Softmax"),
    (17, "Dropout", [np.float32(0.3)], {}, "Dropout"), (11, "Dropout", [], {"ratio": 0.4}, "Dropout"),
    (17, "Cast", [], {"to": 1}, "Split"),
    *((17, op, [np.float32(3)], {}, "Power") for op in ("Add", "Sub", "Mul", "Div")),
    (17, "Add", [values(4, 1, 1)], {}, "Bias"), (17, "Sub", [values(5)], {}, "Bias"),
    (17, "Mul", [values(1, 4, 6, 1)], {}, "Scale"), (17, "Div", [2 + values(2, 4, 6, 5) ** 2], {}, "Scale"),
    (17, "BatchNormalization", [values(4), values(4, seed=1), values(4, seed=2), values(4) ** 2], {"epsilon": 1e-3},
     "BatchNorm Scale"),
    (17, "BatchNormalization", [np.ones(4, "f"), np.zeros(4, "f"), values(4), values(4) ** 2], {}, "BatchNorm"),
    (17, "LRN", [], {"size": 3, "alpha": 0.1, "beta": 0.6, "bias": 2.0}, "LRN"),
    (17, "MeanVarianceNormalization", [], {"axes": [2, 3]}, "MVN"),
    (17, "MeanVarianceNormalization", [], {"axes": [1, 2, 3]}, "MVN"),
    (17, "Flatten", [], {"axis": 2}, "Reshape"), (17, "Reshape", [np.array([0, -1])], {}, "Flatten"),
    (17, "Reshape", [np.array([0, 2, 2, 30])], {}, "Reshape"), (17, "Unsqueeze", [np.array([2])], {}, "Reshape"),
    (11, "Unsqueeze", [], {"axes": [0]}, "Reshape"), (17, "Split", [], {"axis": 1}, "Slice"),
    (17, "Slice", [np.array([1]), np.array([3]), np.array([1])], {}, "Slice Silence"),
    (17, "Slice", [np.array([0, -3]), np.array([2, 99]), np.array([2, 3])], {}, "Slice Silence Slice Silence"),
    (9, "Slice", [], {"starts": [2], "ends": [1000], "axes": [2]}, "Slice Silence"),
    (17, "Gather", [np.array([3, 2, 1, 0])], {"axis": 1}, "Slice Concat"), (17, "Gather", [np.array(1)], {"axis": 2},
                                                                             "Slice Silence Reshape"),
    (17, "Gather", [np.array([1, 2])], {"axis": -1}, "Slice Silence"),
    (17, "Tile", [np.array([1, 2, 1, 3])], {}, "Tile Tile"),
    (17, "ReduceMean", [], {"axes": [2, 3]}, "Pooling"), (17, "ReduceMean", [], {"axes": [2, 3], "keepdims": 0},
                                                           "Pooling Flatten"),
    (17, "ReduceMax", [], {"axes": [-1, -2]}, "Pooling"), (18, "ReduceMean", [np.array([1, 2, 3])], {}, "Reduction Reshape"),
    (17, "ReduceSum", [np.array([3])], {"keepdims": 0}, "Reduction"), (17, "ReduceL1", [], {"axes": [2, 3]},
                                                                        "Reduction Reshape"),
    (17, "ReduceSumSquare", [], {"axes": [1, 2, 3], "keepdims": 0}, "Reduction"),
    (17, "ArgMax", [], {"axis": 1, "select_last_index": 1}, "ArgMax"),
    (17, "Resize", ["", np.array([1, 1, 2, 3], np.float32)], {"mode": "nearest"}, "Deconvolution"),
    (17, "Resize", ["", "", np.array([2, 4, 12, 10])], {
        "mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, "Deconvolution"),
    (9, "Upsample", [np.array([1, 1, 3, 2], np.float32)], {"mode": "nearest"}, "Deconvolution"),
    (17, "DepthToSpace", [], {"blocksize": 2}, "Deconvolution"),
    (17, "DepthToSpace", [], {"blocksize": 2, "mode": "CRD"}, "Deconvolution"),
    (17, "Pad", [np.array([0, 0, 1, 0, 0, 0, 2, 1])], {}, "Convolution"),
    (17, "MatMul", [values(5, 7)], {}, "InnerProduct"),
    *((17, "Conv", [values(6, 4, 3, 3), values(6)], {"pads": pads, "strides": strides, "dilations": dilations}, "Convolution")
      for pads in ([0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 2], [2, 0, 1, 1]) for strides in ([1, 1], [2, 1])
      for dilations in ([1, 1], [1, 2])),
    (17, "Conv", [values(4, 2, 3, 3)], {"group": 2, "auto_pad": "SAME_UPPER", "strides": [2, 2]}, "Convolution"),
    (17, "Conv", [values(4, 4, 2, 2)], {"auto_pad": "SAME_LOWER"}, "Convolution"),
    *((17, "ConvTranspose", [values(4, 3, 3, 2), values(6)], {
        "group": 2, "pads": pads, "strides": [2, 3], "dilations": dilations, "output_padding": more}, "Deconvolution")
      for pads in ([0, 0, 0, 0], [1, 0, 1, 0], [0, 1, 2, 0]) for dilations in ([1, 1], [2, 1]) for more in ([0, 0], [1, 2])),
    (17, "ConvTranspose", [values(4, 3, 3, 3)], {"strides": [2, 2], "output_shape": [12, 10]}, "Deconvolution"),
    (17, "ConvTranspose", [values(4, 3, 3, 3)], {"strides": [2, 2], "auto_pad": "SAME_LOWER"}, "Deconvolution"),
]


@pytest.mark.parametrize(("opset", "op", "inputs", "attributes", "layers"), SINGLE,
                         ids=[f"{k}-{case[1]}" for k, case in enumerate(SINGLE)])
def test_operator(opset: int, op: str, inputs: Sequence[Any], attributes: dict[str, Any], layers: str,
                  tmp_path: Path) -> None:
    """The same results (which the conversion checks itself), by the layers one would write."""
    build = Builder(opset)
    outputs = build(op, build.input("x", 2, 4, 6, 5), *inputs, outputs=2 if op == "Split" else 1, **attributes)
    message = convert(tmp_path, build, *([outputs] if isinstance(outputs, str) else outputs))
    assert types(message) == layers.split()


#: Operators that the cases above do not have, and the test that does.
ELSEWHERE = {"Log", "Sqrt", "Sum", "Mean", "Concat", "Gemm", "Squeeze", "Expand", "Transpose", "MaxPool", "AveragePool",
             "SpaceToDepth", "InstanceNormalization"}


def test_every_operator_has_a_case() -> None:
    assert {case[1] for case in SINGLE} | ELSEWHERE == set(FROM_ONNX.names())


def test_values_together(tmp_path: Path) -> None:
    """Operators of several computed values."""
    build = Builder()
    x, y, v = build.input("x", 2, 3, 4, 5), build.input("y", 2, 3, 4, 5), build.input("v", 2, 3, 1, 1)
    n, w = build.input("n", 2, 3), build.input("w", 3, 1, 1)
    tops = [build(op, x, y) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")]
    tops += [build("Mul", x, v), build("Add", v, x), build("Mul", w, x), build("Sub", np.float32(1), x),
             build("Div", np.float32(1), build("Exp", x)), build("Log", build("Exp", x)),
             build("Sqrt", build("Abs", x)), build("Concat", x, y, x, axis=2), build("Max", x, y, y),
             build("Concat", x, values(2, 3, 4, 1), axis=3), build("Gemm", n, values(3, 4), values(4), alpha=0.5, beta=2.0),
             build("Gemm", n, values(6, 3), transB=1), build("Gemm", n, values(3, 2), np.float32([3])),
             build("Add", build("MatMul", n, values(3, 4)), values(4)), build("Squeeze", v, np.array([2, 3])),
             build("Expand", v, np.array([2, 3, 4, 5])), build("Transpose", v, perm=[0, 2, 3, 1]),
             build("SpaceToDepth", build("Concat", x, x, axis=3), blocksize=2),
             build("Add", build("Mul", x, values(3, 1, 1)), values(3, 1, 1)), build("Mul", x, build("Sigmoid", x))]
    convert(tmp_path, build, *tops)


@pytest.mark.parametrize("ceil", [0, 1])
@pytest.mark.parametrize("method", ["MaxPool", "AveragePool"])
def test_pooling(method: str, ceil: int, tmp_path: Path) -> None:
    """Over a grid of windows, with what Caffe lays too many cut off, and its other divisors made up for."""
    for size in (6, 7):
        build, tops = Builder(19), []
        x = build.input("x", 1, 2, size, 5)
        for kernel, stride, before, after in product((1, 2, 3), (1, 2, 3), (0, 1, 2), (0, 1, 2)):
            if max(before, after) >= kernel:
                continue
            for count in (0, 1) if method == "AveragePool" else (None,):
                options = {} if count is None else {"count_include_pad": count}
                tops.append(build(method, x, kernel_shape=[kernel, 2], strides=[stride, 1], pads=[before, 0, after, 0],
                                  ceil_mode=ceil, **options))
        message = convert(tmp_path, build, *tops)
        assert types(message).count("Pooling") == len(tops) > 40
        wanted = {"Pooling", "Slice", "Silence"} | ({"Scale"} if method == "AveragePool" else set())
        assert set(types(message)) == wanted


def test_padding_goes_into_the_next_layer(tmp_path: Path) -> None:
    """Into convolutions and pooling, into the largest of a window only where nothing is below 0."""
    build = Builder()
    x, pads = build.input("x", 2, 3, 7, 7), np.array([0, 0, 0, 1, 0, 0, 2, 1])
    conv = build("Conv", build("Pad", x, pads), values(4, 3, 3, 3), strides=[2, 2], pads=[1, 0, 0, 0])
    mean = build("AveragePool", build("Pad", x, pads), kernel_shape=[3, 3], strides=[2, 2])
    positive = build("MaxPool", build("Pad", build("Relu", x), pads), kernel_shape=[3, 3], strides=[2, 2])
    signed = build("MaxPool", build("Pad", x, pads), kernel_shape=[3, 3], strides=[2, 2])
    message = convert(tmp_path, build, conv, mean, positive, signed)
    assert types(message) == ["Convolution", "Pooling", "Slice", "Silence", "ReLU", "Pooling", "Slice", "Silence",
                              "Convolution", "Pooling"]


def test_shapes_are_computed(tmp_path: Path) -> None:
    """What exporters write to flatten: Shape, Gather, Unsqueeze, Concat, Reshape; and an expression of constants."""
    build = Builder()
    x = build.input("x", "N", 3, 4, 4)
    size = build("Unsqueeze", build("Gather", build("Shape", x), np.array(0)), np.array([0]))
    flat = build("Reshape", x, build("Concat", size, np.array([-1]), axis=0))
    weight = build("Transpose", build("Mul", values(5, 48), np.float32(2)), perm=[1, 0])
    message = convert(tmp_path, build, build("MatMul", flat, weight))
    assert types(message) == ["InnerProduct"]  # which flattens by itself
    net = Net(str(tmp_path / "model.prototxt"))
    net.blobs["x"].reshape(3, 3, 4, 4)
    assert net.forward()["t7" if "t7" in net.blobs else net.outputs[0]].shape == (3, 5)


def test_old_operator_versions(tmp_path: Path) -> None:
    """Opset 7: softmax over what is flattened, attributes where inputs are today."""
    build = Builder(7)
    x = build.input("x", 2, 6, 1, 1)
    convert(tmp_path, build, build("Softmax", x, axis=1), build("Squeeze", x, axes=[2, 3]),
            build("Pad", x, pads=[0, 0, 1, 1, 0, 0, 1, 1]))


def test_names_and_hdf5(tmp_path: Path) -> None:
    """Blobs are called as the values are, layers as the nodes; in HDF5 no layer's name has a slash."""
    build = Builder()
    x = build.input("x", 1, 2, 5, 5)
    build.nodes.append(helper.make_node("Conv", [x, build.constant(values(3, 2, 3, 3))], ["block/out"], "/block/conv/Conv"))
    build.nodes.append(helper.make_node("Relu", ["block/out"], ["y"], "block/conv/Conv"))
    message = convert(tmp_path, build, "y")
    assert [(layer.name, *layer.top) for layer in message.layer[1:]] == [
        ("block/conv/Conv", "block/out"), ("block/conv/Conv_2", "y")]
    message = convert(tmp_path, build, "y", suffix=".h5")
    assert [layer.name for layer in message.layer[1:]] == ["block_conv_Conv", "block_conv_Conv_2"]
    net = Net(str(tmp_path / "model.prototxt"))
    assert not net.copy_from(str(tmp_path / "model.caffemodel.h5")).missing
    np.testing.assert_array_equal(net.params["block_conv_Conv"][0].data, values(3, 2, 3, 3))


def test_half_precision(tmp_path: Path) -> None:
    """Float16 weights and values become float32 ones."""
    build = Builder()
    build.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT16, (1, 2, 5, 5)))
    y = build("Relu", build("Conv", "x", values(3, 2, 3, 3).astype(np.float16)))
    path = build.save(tmp_path / "model.onnx", y)
    to_caffe(path, tmp_path / "model", tolerance=5e-3)
    assert Net(str(tmp_path / "model.prototxt")).copy_from(str(tmp_path / "model.caffemodel")).copied


def gaps(folder: Path, build: Builder, *outputs: str) -> dict[str, str]:
    """Operator -> reason, of a graph that must be refused without leaving a file."""
    path = build.save(folder / "refused.onnx", *outputs)
    with pytest.raises(ConversionError) as caught:
        to_caffe(path, folder / "out")
    assert not list(folder.glob("out*"))
    assert all(f"{node}: {reason}" in str(caught.value) for node, reason in caught.value.gaps)
    return {node.op: reason for node, reason in caught.value.gaps}


def test_all_gaps_are_listed(tmp_path: Path) -> None:
    """One list of everything that is in the way, also behind the first."""
    build = Builder()
    x = build.input("x", 1, 4, 6, 6)
    y = build("Transpose", build("Erf", x), perm=[0, 2, 3, 1])
    z = build("Relu", build("InstanceNormalization", x, values(4), values(4)))
    found = gaps(tmp_path, build, y, z)
    assert list(found) == ["Erf", "Transpose", "InstanceNormalization"]
    assert "Permute" in found["Transpose"]


@pytest.mark.parametrize(("op", "inputs", "attributes", "reason"), [
    ("MaxPool", [], {"kernel_shape": [2, 2], "dilations": [2, 2]}, "dilated"),
    ("MaxPool", [], {"kernel_shape": [2, 2], "outputs": 2}, "indices"),
    ("Conv", ["x"], {}, "computed"), ("Conv", [], {}, "shapes do not fit"),
    ("LRN", [], {"size": 4}, "odd"), ("ArgMax", [], {"axis": 1}, "the first"),
    ("PRelu", [values(4, 7, 1)], {}, "slope"), ("Add", [values(3, 4, 1, 1)], {}, "larger"),
    ("Mul", [values(4, 1, 7)], {}, "follow each other"), ("Slice", [np.array([0]), np.array([7]), np.array([2]), np.array([2])],
                                                         {}, "steps"),
    ("Resize", ["", np.float32([1, 1, 2, 2])], {"mode": "linear"}, "interpolates"),
    ("Resize", ["", np.float32([1, 1, 1.5, 2])], {"mode": "nearest"}, "whole number"),
    ("Pad", [np.array([0, 0, 1, 1, 0, 0, 1, 1])], {"mode": "reflect"}, "pads"),
    ("Pad", [np.array([0, 0, 1, 1, 0, 0, 1, 1]), np.float32(1)], {}, "pads"),
    ("Pad", [np.array([0, 1, 0, 0, 0, 0, 0, 0])], {}, "spatial"),
    ("BatchNormalization", [values(4)] * 4, {"training_mode": 1, "outputs": 3}, "batch"),
    ("Cast", [], {"to": 7}, "floats"), ("ReduceMax", [], {"axes": [1]}, "no maximum"),
    ("NoSuchThing", [], {}, "no such operator"), ("LRN", [], {"size": 3, "alpha": "much"}, "alpha"),
    ("Resize", ["", np.float32([1, 1, 2, 2])], {"mode": "nearest", "nearest_mode": "best"}, "attributes are not"),
], ids=str)
def test_gap(op: str, inputs: Sequence[Any], attributes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    """Refused, and why."""
    build = Builder()
    outputs = build(op, build.input("x", 1, 4, 7, 7), *inputs, **attributes)
    assert reason in gaps(tmp_path, build, outputs if isinstance(outputs, str) else outputs[0])[op]


def test_pooling_that_caffe_has_not(tmp_path: Path) -> None:
    """Windows on one axis."""
    build = Builder()
    line = build("MaxPool", build.input("x", 1, 4, 7), kernel_shape=[2])
    assert "along 1 spatial" in gaps(tmp_path, build, line)["MaxPool"]


def test_foreign_domain(tmp_path: Path) -> None:
    build = Builder()
    build.input("x", 1, 4)
    build.nodes.append(helper.make_node("Gelu", ["x"], ["y"], "gelu", domain="com.microsoft"))
    assert "com.microsoft" in gaps(tmp_path, build, "y")["Gelu"]


def test_open_axes(tmp_path: Path) -> None:
    """The first is 1 unless told; others must be told; contradictions are named."""
    build = Builder()
    path = build.save(tmp_path / "model.onnx", build("Relu", build.input("x", "N", 3, "H", 8)))
    with pytest.raises(CaffeError, match=r'input "x" is N x 3 x H x 8: axis 2 is open'):
        read_onnx(path)
    assert list(read_onnx(path, {"x": (2, 3, 5, 8)}).message.layer[0].input_param.shape[0].dim) == [2, 3, 5, 8]
    with pytest.raises(CaffeError, match="does not allow the 4"):
        read_onnx(path, {"x": (1, 4, 5, 8)})
    with pytest.raises(CaffeError, match="has no input z"):
        read_onnx(path, {"x": (1, 3, 5, 8), "z": (1,)})


def external(folder: Path, location: str) -> Path:
    """A model whose weight is said to lie in the file `location`."""
    build = Builder()
    y = build("Conv", build.input("x", 1, 2, 5, 5), values(3, 2, 3, 3))
    tensor = build.constants[0]
    (folder / "weights.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return build.save(folder / "model.onnx", y)


def test_external_data(tmp_path: Path) -> None:
    """Read from the model's own folder, and from nowhere else."""
    (tmp_path / "model").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(4 * 54))
    path = external(tmp_path / "model", "weights.bin")
    np.testing.assert_array_equal(read_onnx(path).arrays["layer", 1, "blobs", 0], values(3, 2, 3, 3))
    (tmp_path / "model" / "link.bin").symlink_to(tmp_path / "secret.bin")
    for location in ("../secret.bin", str(tmp_path / "secret.bin"), "link.bin", ""):
        with pytest.raises(ParseError, match="outside of the model's folder|cannot be read"):
            read_onnx(external(tmp_path / "model", location))
    with pytest.raises(ParseError, match="not there"):
        read_onnx(external(tmp_path / "model", "gone.bin"))


def test_hostile_files(tmp_path: Path) -> None:
    """Text, cut-off files, tensors that claim more than they hold, constants of enormous size: errors of ours."""
    build = Builder()
    path = build.save(tmp_path / "model.onnx", build("Add", build.input("x", 1, 2), values(2)))
    whole = path.read_bytes()
    for data in (b"", b"layer { }", whole[:-10], whole[20:]):
        path.write_bytes(data)
        with pytest.raises(CaffeError):
            read_onnx(path)
    with pytest.raises(ParseError, match="cannot be read"):
        read_onnx(tmp_path / "none.onnx")
    build.constants[0].dims[0] = 1 << 40
    with pytest.raises(ParseError, match="1099511627776"):
        read_onnx(build.save(path, "t0"))
    build = Builder()
    y = build("Add", build.input("x", 1, 2), build("ConstantOfShape", np.array([1 << 40, 2])))
    assert "enormous" in gaps(tmp_path, build, y)["ConstantOfShape"]


def test_mutated_files(tmp_path: Path) -> None:
    """Bytes changed, cut out and put in: a net or an error of ours, and neither much time nor much memory."""
    build = Builder()
    x = build.input("x", 1, 3, 8, 8)
    y = build("Conv", build("Pad", x, np.array([0, 0, 1, 1, 0, 0, 0, 1])), values(4, 3, 3, 3), values(4), strides=[2, 2])
    y = build("MaxPool", build("Relu", y), kernel_shape=[2, 2], ceil_mode=1)
    size = build("Unsqueeze", build("Gather", build("Shape", y), np.array(0)), np.array([0]))
    flat = build("Reshape", y, build("Concat", size, np.array([-1]), axis=0))
    z = build("Add", build("Mul", build("Gemm", flat, values(36, 5)), values(5)), values(5))
    a, b = build("Split", y, axis=1, outputs=2)
    large = build("Resize", build("Concat", b, a, axis=1), "", np.array([1, 1, 2, 2], np.float32), mode="nearest")
    path = build.save(tmp_path / "model.onnx", z, large)
    whole, rng, read = path.read_bytes(), np.random.RandomState(0), 0
    for _ in range(250):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            place, count = rng.randint(len(data)), rng.randint(1, 6)
            new = [bytes([rng.randint(256)]), b"", rng.bytes(count), bytes([data[place] ^ 1 << rng.randint(8)])]
            kind = rng.randint(4)
            data[place:place + (1, count, 0, 1)[kind]] = new[kind]
        path.write_bytes(data)
        try:
            read_onnx(path)
            read += 1
        except CaffeError:
            pass
    assert 5 < read < 245


def test_a_difference_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check at the end sees a net that is not the same."""
    build = Builder()
    path = build.save(tmp_path / "model.onnx", build("Elu", build.input("x", 2, 3), alpha=0.5))
    from caffe_compat.convert import from_onnx_net

    monkeypatch.setitem(from_onnx_net.FROM_ONNX._entries, "Elu", FROM_ONNX.get("Relu"))
    with pytest.raises(CaffeError, match='not the same function.*the first is t0:'):
        to_caffe(path, tmp_path / "model")
    assert not (tmp_path / "model.prototxt").exists()
