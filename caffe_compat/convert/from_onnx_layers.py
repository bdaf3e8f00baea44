"""ONNX operators with learned numbers that are no convolutions: inner products, normalization, embeddings."""

from __future__ import annotations

import numpy as np

from .from_onnx_graph import Gap, Node
from .from_onnx_net import FROM_ONNX, Translation


@FROM_ONNX.add("Gemm")
def gemm(net: Translation, node: Node) -> None:
    """An InnerProduct, `alpha` and `beta` in its blobs."""
    if node.get("transA", 0):
        raise Gap("it transposes its first input, which no layer of Caffe does")
    weight = net.graph.constant(node, 1)
    weight = weight if node.get("transB", 0) else weight.T
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    blobs = [weight if alpha == 1 else weight * np.float32(alpha)]
    bias = net.graph.constant(node, 2)
    if bias is not None:
        if bias.size not in (1, weight.shape[0]) or (bias.ndim > 1 and bias.shape[0] != 1):
            raise Gap(f"it adds {bias.shape}; an InnerProduct adds one number for each of its {weight.shape[0]} outputs")
        blobs.append(np.broadcast_to(bias.ravel() * np.float32(beta), weight.shape[0]))
    net.layer(node, "InnerProduct", [net.blob(node.inputs[0])], blobs=blobs, num_output=weight.shape[0],
              **({} if bias is not None else {"bias_term": False}))


@FROM_ONNX.add("MatMul")
def matmul(net: Translation, node: Node) -> None:
    """An InnerProduct over the last axis, with the constant that a following Add adds as its bias."""
    shape, weight = net.shape(node.inputs[0]), net.graph.constant(node, 1)
    if weight.ndim != 2 or net.is_constant(node.inputs[0]) or len(shape) < 2:
        raise Gap(f"it multiplies {shape} by {weight.shape}; an InnerProduct takes a matrix of weights as the second")
    blobs = [weight.T]
    following = net.graph.only_reader(node.outputs[0])
    if following is not None and following.op == "Add":
        other = next(name for name in following.inputs if name != node.outputs[0])
        bias = net.graph.constants.get(other)
        per_output = bias is not None and bias.shape[-1:] == (weight.shape[1],) and bias.size == weight.shape[1]
        if per_output and net.shape(following.outputs[0]) == net.shape(node.outputs[0]):
            blobs.append(bias.ravel())
            net.absorb(following, node)
    settings = {} if len(blobs) > 1 else {"bias_term": False}
    if len(shape) != 2:
        settings["axis"] = len(shape) - 1
    net.layer(node, "InnerProduct", [net.blob(node.inputs[0])], blobs=blobs, num_output=weight.shape[1], **settings)


@FROM_ONNX.add("BatchNormalization")
def batch_normalization(net: Translation, node: Node) -> None:
    """A BatchNorm with the stored statistics, and a Scale with a bias, unless that does nothing."""
    if node.get("training_mode", 0) or not node.get("spatial", 1):
        raise Gap("it normalizes by the statistics of the batch or of single positions, not by stored ones of channels")
    scale, shift, mean, variance = (net.graph.constant(node, index) for index in range(1, 5))
    statistics = [mean, variance, np.ones(1, np.float32)]
    settings = {"use_global_stats": True, "eps": node.get("epsilon", 1e-5)}
    bottom = net.blob(node.inputs[0])
    if (scale == 1).all() and (shift == 0).all():
        net.layer(node, "BatchNorm", [bottom], blobs=statistics, **settings)
        return
    normal = net.temporary(node, "normal")
    net.layer(node, "BatchNorm", [bottom], [normal], statistics, **settings)
    net.layer(node, "Scale", [normal], blobs=[scale, shift], suffix="scale", bias_term=True)


@FROM_ONNX.add("LRN")
def lrn(net: Translation, node: Node) -> None:
    """An LRN across channels."""
    if node.get("size") % 2 == 0 or len(net.shape(node.inputs[0])) != 4:
        raise Gap(f"its size is {node.get('size')} on {net.shape(node.inputs[0])}; Caffe's is odd, on images")
    net.layer(node, "LRN", [net.blob(node.inputs[0])], local_size=node.get("size"), alpha=node.get("alpha", 1e-4),
              beta=node.get("beta", 0.75), k=node.get("bias", 1.0))


@FROM_ONNX.add("MeanVarianceNormalization")
def mean_variance_normalization(net: Translation, node: Node) -> None:
    """An MVN of each image."""
    axes, shape = sorted(axis % 4 for axis in node.get("axes", [0, 2, 3])), net.shape(node.inputs[0])
    if len(shape) != 4 or axes not in ([2, 3], [1, 2, 3]):
        raise Gap(f"it normalizes over the axes {axes}; Caffe's MVN over those of one image, or of one channel of it")
    net.layer(node, "MVN", [net.blob(node.inputs[0])], across_channels=axes == [1, 2, 3])


@FROM_ONNX.add("InstanceNormalization")
def instance_normalization(net: Translation, node: Node) -> None:
    """Refused: Caffe's MVN has its epsilon in another place."""
    raise Gap("it divides by sqrt(variance + epsilon), Caffe's MVN by sqrt(variance) + epsilon")
