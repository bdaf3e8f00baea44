"""A small net with a residual sum and batch normalization on scikit-learn's digits, trained once, to be pruned by rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_compat import proto
from caffe_compat.db import create_database, make_datum
from caffe_compat.plugins import create_solver
from caffe_compat.solver import Solver
from increg import PruneHook

NET = """
name: "digits"
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN } transform_param { scale: 0.0625 }
  data_param { source: "train_db" batch_size: 32 backend: LMDB } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST } transform_param { scale: 0.0625 }
  data_param { source: "test_db" batch_size: 100 backend: LMDB } }
"""
SOLVER = """
test_iter: 4 test_interval: 1000000 test_initialization: false base_lr: 0.05 lr_policy: "fixed" momentum: 0.9
weight_decay: 0.0005 random_seed: 3 solver_mode: CPU snapshot_after_train: false
"""


def _conv(name: str, bottom: str, outputs: int, kernel: int = 3, stride: int = 1, relu: bool = True) -> str:
    text = f"""
    layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" convolution_param {{ num_output: {outputs}
      kernel_size: {kernel} stride: {stride} pad: {kernel // 2} bias_term: false weight_filler {{ type: "msra" }} }} }}
    layer {{ name: "{name}_bn" type: "BatchNorm" bottom: "{name}" top: "{name}" }}
    layer {{ name: "{name}_scale" type: "Scale" bottom: "{name}" top: "{name}" scale_param {{ bias_term: true }} }}"""
    return text + (f'layer {{ name: "{name}_relu" type: "ReLU" bottom: "{name}" top: "{name}" }}' if relu else "")


def net_text() -> str:
    """stem, a residual block with an identity shortcut, a convolution with stride, one linear layer."""
    return NET + _conv("stem", "data", 12) + _conv("inner", "stem", 16) + _conv("outer", "inner", 12, relu=False) + """
    layer { name: "sum" type: "Eltwise" bottom: "stem" bottom: "outer" top: "sum" }
    layer { name: "sum_relu" type: "ReLU" bottom: "sum" top: "sum" }""" + _conv("last", "sum", 20, stride=2) + """
    layer { name: "ip" type: "InnerProduct" bottom: "last" top: "ip" inner_product_param { num_output: 10
      weight_filler { type: "xavier" } } }
    layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" include { phase: TRAIN } }
    layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }"""


class Digits:
    """Databases, net and weights in a folder."""

    def __init__(self, folder: Path) -> None:
        datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn, for its digits")
        digits = datasets.load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))
        self.folder = folder
        for name, part in (("train_db", order[400:]), ("test_db", order[:400])):
            with create_database(folder / name) as writer:
                for i, k in enumerate(part):
                    image = digits.images[k].astype(np.uint8)[None]
                    writer.put(b"%08d" % i, make_datum(image, int(digits.target[k])).SerializeToString())
        text = net_text().replace('"train_db"', f'"{folder}/train_db"').replace('"test_db"', f'"{folder}/test_db"')
        (folder / "net.prototxt").write_text(text)
        solver, _ = self.make("max_iter: 250")
        solver.solve()
        assert accuracy(solver) >= 0.96
        self.weights = str(folder / "trained.caffemodel")
        solver.net.save(self.weights)

    def make(self, settings: str, prefix: str = "s", device: str | None = None) -> tuple[Solver, PruneHook]:
        """A solver with more settings, and the hook that prunes, if one does."""
        path = self.folder / f"{prefix}.prototxt"
        common = f'{SOLVER} net: "{self.folder}/net.prototxt" snapshot_prefix: "{self.folder}/{prefix}"'
        message = proto.parse_text(common, "SolverParameter", dialect=proto.INCREG).message
        message.MergeFrom(proto.parse_text(settings, "SolverParameter", dialect=proto.INCREG).message)
        path.write_text(proto.dump_text(message))
        solver = create_solver(path, keep_blobs=False, **({"device": device} if device else {}))
        return solver, next((hook for hook in solver.hooks if isinstance(hook, PruneHook)), None)


def accuracy(solver: Solver) -> float:
    """Of the test net."""
    return dict(solver.test_all()[0].scores)["accuracy"]


def rows_left(hook: PruneHook) -> dict[str, int]:
    """By layer, how many rows are not pruned."""
    return {layer.name: layer.layout.rows - layer.masks.num_rows for layer in hook.layers}
