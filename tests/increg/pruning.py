"""What the pruning tests share: layers without a net, a tiny net with data of its own, and recorded numbers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch

from caffe_compat import proto
from caffe_compat.blob import Blob
from caffe_compat.db import create_database, make_datum
from caffe_compat.plugins import create_solver
from caffe_compat.solver import Solver
from increg import PruneConfig, PruneHook, read_config
from increg.groups import Layout, Masks
from increg.state import LayerState

GOLDEN = Path(__file__).parents[1] / "golden" / "increg"
#: What the solvers of the recorded runs share; `RECORDED` has what is their own, and the ratios of conv1 and conv2.
COMMON = """
net: "net.prototxt" test_iter: 100 test_interval: 1000000 test_initialization: false base_lr: 0.0005 lr_policy: "fixed"
momentum: 0.9 weight_decay: 0.00025 max_iter: 10000000 snapshot_prefix: "s"
iter_size_prune: 1 iter_size_losseval: 2 iter_size_retrain: 2 iter_size_final_retrain: 8
"""
SINGLE = " acc_borderline: -1 losseval_interval: 1000 retrain_test_interval: 500 "
QUICK = " AA: 0.0005 target_reg: 0.02 "
RECORDED = {
    "col_demo": ('prune_method: "Reg_Col" regularization_type: "Reg_Col" AA: 0.00025 target_reg: 0.05' + SINGLE, 0.9, 0.9),
    "col_scheme2": ('prune_method: "Reg_Col" IF_scheme1_when_Reg_rank: false' + QUICK + SINGLE, 0.6, 0.7),
    "row": ('prune_method: "Reg_Row" regularization_type: "Reg_Row"' + QUICK + SINGLE, 0.5, 0.5),
    "spatial": ('prune_method: "Reg_Col" regularization_type: "RegSpa_Col"' + QUICK + SINGLE, 0.5, 0.5),
    "multistage": ('prune_method: "Reg_Col"' + QUICK + "acc_borderline: 0.985 baseline_acc: 0.991 losseval_interval: 100 "
                   "retrain_test_interval: 100", 0.9, 0.9),
}


@cache
def recorded_arrays() -> dict[str, np.ndarray]:
    """`<run>/<iter>/<layer>/{punish,score,score_flat,zero_rows,zero_columns}` as the reference recorded them, and
    `<run>/norms/<layer>` (iterations, groups): the norms that led there, of a run that ended equal to the recording."""
    with np.load(GOLDEN / "runs.npz") as file:
        return dict(file)


def config(text: str, as_reference: bool = False) -> PruneConfig:
    """The settings in the text of a solver."""
    found = read_config(proto.parse_text(text, "SolverParameter", dialect=proto.INCREG).message, "solver", as_reference)
    assert found is not None
    return found


def layer_state(name: str, shape: tuple[int, ...], index: int = 0, ratio: float = 0.0, *, outputs: int = 1, group: int = 1,
                table_index: int | None = None) -> LayerState:
    """A layer with weights of ones."""
    layout = Layout(shape, group)
    return LayerState(
        name=name, where=name, kind="Convolution" if len(shape) == 4 else "InnerProduct", index=index,
        weight=Blob(torch.ones(shape)), learnable=index, layout=layout, outputs=outputs,
        ratio=np.float32(ratio), ratio_step=np.float32(0.75 if ratio else 0), update=True, decays=True, shared=False,
        masks=Masks(layout), table_index=table_index)


def lenet5(ratio1: float, ratio2: float) -> list[LayerState]:
    """The layers of the recorded runs."""
    return [
        layer_state("conv1", (20, 1, 5, 5), 0, ratio1, outputs=24 * 24, table_index=0),
        layer_state("conv2", (50, 20, 5, 5), 1, ratio2, outputs=8 * 8, table_index=1),
        layer_state("ip1", (500, 800), 2), layer_state("ip2", (10, 500), 3)]


TINY_NET = """
name: "tiny"
layer {{ name: "data" type: "Data" top: "data" top: "label" data_param {{ source: "{folder}/db" batch_size: 8 backend: LMDB }}
  transform_param {{ scale: 0.01 mean_value: 100 }} }}
layer {{ name: "conv1" type: "Convolution" bottom: "data" top: "conv1" param {{ lr_mult: 1 }} param {{ lr_mult: 2 }}
  prune_param {{ prune_ratio: 0.5 prune_ratio_step: 0.75 }}
  convolution_param {{ num_output: 6 kernel_size: 3 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }}
layer {{ name: "conv2" type: "Convolution" bottom: "conv1" top: "conv2"
  prune_param {{ prune_ratio: 0.6 prune_ratio_step: 0.75 }}
  convolution_param {{ num_output: 8 kernel_size: 3 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "drop" type: "Dropout" bottom: "conv2" top: "conv2" }}
layer {{ name: "ip" type: "InnerProduct" bottom: "conv2" top: "ip" inner_product_param {{ num_output: 3
  weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }}
layer {{ name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include {{ phase: TEST }} }}
"""
TINY_SOLVER = """
net: "{folder}/net.prototxt" snapshot_prefix: "{folder}/s" test_iter: 5 test_interval: 100000 test_initialization: false
base_lr: 0.01 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.001 max_iter: 100000 random_seed: 7 solver_mode: CPU
prune_method: "Reg_Col" AA: 0.02 target_reg: 0.1 losseval_interval: 5 retrain_test_interval: 4 iter_size_final_retrain: 2
acc_borderline: -1
"""


class Tiny:
    """A net of two convolutions on 40 noisy images of three kinds, pruned within some tens of iterations."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rng = np.random.default_rng(0)
        kinds = rng.integers(0, 200, (3, 2, 9, 9))
        with create_database(folder / "db") as writer:
            for i in range(40):
                image = np.clip(kinds[i % 3] + rng.normal(0, 20, (2, 9, 9)), 0, 255).astype(np.uint8)
                writer.put(b"%08d" % i, make_datum(image, i % 3).SerializeToString())
        self.net = TINY_NET.format(folder=folder)
        self.solver = TINY_SOLVER.format(folder=folder)

    def make(self, solver: str = "", net: dict[str, str] | None = None, *,
             as_reference: bool = False) -> tuple[Solver, PruneHook]:
        """A solver with `solver` added to its settings (later ones win), and parts of its net's text replaced."""
        text = self.net
        for old, new in (net or {}).items():
            assert old in text
            text = text.replace(old, new)
        (self.folder / "net.prototxt").write_text(text)
        path = self.folder / "solver.prototxt"
        path.write_text(_override(self.solver, solver))
        made = create_solver(path, as_reference=as_reference, keep_blobs=False)
        hooks = [hook for hook in made.hooks if isinstance(hook, PruneHook)]
        return made, hooks[0] if hooks else None


def _override(text: str, more: str) -> str:
    message = proto.parse_text(text, "SolverParameter", dialect=proto.INCREG).message
    message.MergeFrom(proto.parse_text(more, "SolverParameter", dialect=proto.INCREG).message)
    return proto.dump_text(message)

