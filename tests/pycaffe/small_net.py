"""A small classifier for the tests of pycaffe's Net, and what it computes by numpy alone."""

from __future__ import annotations

import numpy as np

import caffe_compat as caffe

TEXT = """
name: "small" force_backward: true
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 5 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 4 kernel_size: 3
  weight_filler { type: "gaussian" std: 0.3 } bias_filler { type: "constant" value: 0.5 } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc" inner_product_param { num_output: 5
  weight_filler { type: "gaussian" std: 0.3 } } }
layer { name: "drop" type: "Dropout" bottom: "fc" top: "drop" include { phase: TRAIN stage: "noisy" } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
layer { name: "extra" type: "Power" bottom: "prob" top: "extra" include { min_level: 2 } }
"""


def images(rows: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 3, 5, 5)).astype(np.float32)


def probabilities(net: caffe.Net, x: np.ndarray) -> np.ndarray:
    """The net's output by numpy alone."""
    weights, biases = (blob.data for blob in net.params["conv"])
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    conv = np.maximum(np.einsum("ncyxij,ocij->noyx", windows, weights) + biases[:, None, None], 0)
    weights, biases = (blob.data for blob in net.params["fc"])
    scores = np.exp(conv.reshape(len(x), -1) @ weights.T + biases)
    return scores / scores.sum(1, keepdims=True)
