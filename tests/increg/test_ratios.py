"""How much of each layer is pruned: patterns, targets, coupled rows, what is said before training, and what cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_compat import proto
from caffe_compat.errors import CaffeError, SolverError, UnknownType
from caffe_compat.plugins import create_solver
from increg import PruneHook, overview
from increg.methods import L1, method_names
from increg.ratios import foresee
from increg.ties import find_ties

DATA = '''
layer { name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param {
  shape { dim: 2 dim: 3 dim: 8 dim: 8 } data_filler { type: "gaussian" std: 1 }
  shape { dim: 2 } data_filler { type: "constant" value: 1 } } }
'''
LOSS = '''
layer { name: "fc" type: "InnerProduct" bottom: "%s" top: "fc" inner_product_param { num_output: 3
  weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
'''


def conv(name: str, bottom: str, outputs: int, kernel: int = 3, more: str = "") -> str:
    return (f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" convolution_param {{ '
            f'num_output: {outputs} kernel_size: {kernel} pad: {kernel // 2} weight_filler {{ type: "msra" }} {more} }} }}\n')


def eltwise(name: str, *bottoms: str) -> str:
    return f'layer {{ name: "{name}" type: "Eltwise" {" ".join(f"bottom: {b!r}" for b in bottoms)} top: "{name}" }}\n'


CHAIN = DATA + conv("conv1", "data", 8) + conv("conv2", "conv1", 10) + conv("conv3", "conv2", 6) + LOSS % "conv3"
#: A residual block behind a stem: rows of stem and b meet in the sum.
BLOCK = DATA + conv("stem", "data", 8) + conv("a", "stem", 6) + conv("b", "a", 8) + eltwise("sum", "stem", "b") + LOSS % "sum"
#: A depthwise convolution between two pointwise ones.
MOBILE = (DATA + conv("stem", "data", 8) + conv("dw", "stem", 8, more="group: 8") + conv("pw", "dw", 10, 1) + LOSS % "pw")


def make(net: str, settings: str, folder: Path) -> PruneHook:
    text = (f'snapshot_prefix: "{folder}/s" base_lr: 0.01 lr_policy: "fixed" max_iter: 100 random_seed: 3 solver_mode: CPU '
            f"{settings} net_param {{ {net} }}")
    solver = create_solver(proto.parse_text(text, "SolverParameter", dialect=proto.INCREG), keep_blobs=False)
    return next(hook for hook in solver.hooks if isinstance(hook, PruneHook))


def ratios(hook: PruneHook) -> dict[str, float]:
    return {layer.name: round(float(layer.ratio), 6) for layer in hook.layers}


# -- patterns ---------------------------------------------------------------------------------------------------------

def test_later_patterns_win_field_by_field(tmp_path: Path) -> None:
    net = CHAIN.replace("convolution_param { num_output: 6 ",
                        "prune_param { prune_ratio: 0.9 IF_update_row_col: false } convolution_param { num_output: 6 ")
    hook = make(net, 'prune_method: "L1_Col" prune_ratios { layer: "conv*" prune_ratio: 0.5 } '
                'prune_ratios { layer: "conv[12]" prune_ratio: 0.25 } prune_ratios { layer: "conv2" IF_update_row_col: false } '
                'prune_ratios { layer: "f?" prune_ratio: 0.125 }', tmp_path)
    assert ratios(hook) == {"conv1": 0.25, "conv2": 0.25, "conv3": 0.5, "fc": 0.125}
    assert [layer.update for layer in hook.layers] == [True, False, False, True]  # conv3: the net's own


def test_a_pattern_for_all(tmp_path: Path) -> None:
    hook = make(CHAIN, 'prune_method: "L1_Col" prune_ratios { prune_ratio: 0.5 } '
                'prune_ratios { layer: "fc" prune_ratio: 0 }', tmp_path)
    assert ratios(hook) == {"conv1": 0.5, "conv2": 0.5, "conv3": 0.5, "fc": 0}


# -- targets ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", ["L1_Row", "L1_Col", "L2_Col", "Largest_Col", "Random_Col", "L1_Channel", "L1_Weight",
                                    "SFP_Row"])
@pytest.mark.parametrize("target", ["speedup: 2", "compression: 1.5", "speedup: 1.3"])
def test_a_target_is_met_and_hardly_passed(method: str, target: str, tmp_path: Path) -> None:
    """With the ratio one step lower it would not be met; and the pruned net really has the speedup, though half of the
    channels have small weights, so that they go as a whole and take rows along, or stay as a whole."""
    hook = make(CHAIN, f'prune_method: "{method}" prune_target {{ {target} }} one_shot_param {{ iter: 0 }} '
                "soft_prune_param { epoch: 1 epochs: 1 }", tmp_path)
    name, value = target.split(": ")
    given = {layer.ratio for layer in hook.layers if layer.ratio > 0}
    assert len(given) == 1 and hook.layers[-1].ratio == 0
    with torch.no_grad():
        for layer in hook.layers[1:3]:
            layer.weight.tensor[:, ::2] /= 100
    orders = hook.pruner.orders()
    hook.solver.step(2)
    counted = [layer for layer in hook.layers if name == "compression" or layer.is_conv]
    size = [layer.layout.rows * layer.layout.columns * (layer.outputs if name == "speedup" else 1) for layer in counted]
    left = sum(n * (1 - float(layer.pruned_ratio)) for n, layer in zip(size, counted))
    assert float(value) <= sum(size) / left
    for layer in hook.layers:
        layer.ratio = np.float32(layer.ratio - 2e-4 if layer.ratio else 0)
    _, budget = foresee(hook.layers, hook.config, hook.pruner.coupling, hook.pruner.ties, orders)
    assert getattr(budget, name) < float(value)


def test_a_resumed_run_keeps_the_ratios_that_met_the_target(tmp_path: Path) -> None:
    """They were taken from the weights that it started from, which are not those of the snapshot."""
    settings = ('prune_method: "L1_Col" prune_target { speedup: 2 } one_shot_param { iter: 3 } '
                'prune_ratios { layer: "conv1" prune_ratio: 0.25 }')
    before = make(CHAIN, settings, tmp_path)
    with torch.no_grad():
        before.layers[1].weight.tensor[:, ::2] /= 100
    guess = ratios(before)
    before.solver.step(2)
    assert ratios(before) != guess
    before.solver.snapshot()
    after = make(CHAIN, settings, tmp_path)
    assert ratios(after) == guess
    after.solver.restore(str(tmp_path / "s_iter_2.solverstate"))
    after.solver.step(3)
    before.solver.step(3)
    assert ratios(after) == ratios(before) and ratios(after)["conv1"] == 0.25
    assert [layer.num_columns for layer in after.layers] == [layer.num_columns for layer in before.layers]
    assert before.budget().speedup >= 2


def test_ratios_of_their_own_are_kept(tmp_path: Path) -> None:
    hook = make(CHAIN, 'prune_method: "L1_Col" prune_ratios { layer: "conv2" prune_ratio: 0.9 } '
                'prune_ratios { layer: "conv1" prune_ratio: 0 } prune_target { speedup: 2.4 }', tmp_path)
    found = ratios(hook)
    assert (found["conv1"], found["conv2"], found["fc"]) == (0, 0.9, 0)
    assert 0 < found["conv3"] < 0.9


@pytest.mark.parametrize(("settings", "said"), [
    ('prune_method: "L1_Row" prune_target { speedup: 500 }', "speedup: 500 cannot be met by L1_Row: at most "),
    ('prune_method: "L1_Row" least_groups: 4 prune_target { speedup: 6 }', "each keeps 4 rows at least"),
    ('prune_method: "L1_Row" prune_target { speedup: 1 }', "speedup: 1; expected either"),
    ('prune_method: "L1_Spatial" prune_target { speedup: 2 } prune_ratios { layer: "fc" prune_ratio: 0.5 }',
     "L1_Spatial cannot prune this layer: it has no positions of kernels in two axes; set its prune_ratio to 0"),
    ('prune_method: "L1_Row" prune_target { }', "asks for nothing; expected either"),
    ('prune_method: "L1_Row" prune_target { speedup: 2 compression: 2 }', "speedup: 2, compression: 2; expected either"),
    ('prune_method: "L1_Row" prune_ratios { prune_ratio: 0 } prune_target { speedup: 2 }', "finds no layer"),
    ('prune_method: "L1_Row" prune_ratios { layer: "conv*" prune_ratio: 1 }', "is 1, expected 0 <= prune_ratio < 1"),
    ('prune_method: "L1_Row" prune_ratios { layer: "res*" prune_ratio: 0.5 }',
     'prune_ratios "res*" matches none of the layers that can be pruned: conv1, conv2, conv3, fc'),
    ('prune_method: "L1_Row"', "no layer of the net has a prune_ratio. Give prune_param"),
    ('prune_method: "L1_Row" prune_ratios { layer: "fc" prune_ratio: 0.5 }', "fc is not: its rows are needed"),
    ('prune_method: "L1_Spatial" prune_ratios { prune_ratio: 0.5 }', "no positions of kernels in two axes"),
    ('prune_method: "L1_Row" least_groups: 0 prune_target { speedup: 2 }', "least_groups is 0, expected 1 or more"),
    ('prune_method: "L1_Row" least_groups: 6 prune_ratios { layer: "conv*" prune_ratio: 0.5 }', "of which this layer has 6"),
    ('prune_method: "L1_Row" acc_borderline: 0.5 baseline_acc: 0.9 retrain_test_interval: 5 prune_target { speedup: 2 }',
     "L1_Row prunes in one. Set acc_borderline: -1"),
    ('prune_method: "SFP_Row" snapshot_format: HDF5 prune_target { speedup: 2 }', "snapshot_format is HDF5"),
])
def test_what_cannot_be(settings: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SolverError) as error:
        make(CHAIN, settings, tmp_path)
    assert said in str(error.value)


@pytest.mark.parametrize(("name", "kind", "said"), [
    ("GReg3_Row", UnknownType, ['unknown prune_method "GReg3_Row"', "GReg2_Row", "Known: AFP_Channel"]),
    ("SFP_Filter", UnknownType, ['unknown prune_method "SFP_Filter"', "SFP_Col, SFP_Row"]),
    ("AFP_Weight", SolverError, ["AFP prunes by Row, Col, Channel, Spatial alone, not by Weight", "L1_Weight"]),
    ("L1", UnknownType, ["L1_Row"]),
])
def test_unknown_methods_and_units(name: str, kind: type[CaffeError], said: list[str], tmp_path: Path) -> None:
    with pytest.raises(kind) as error:
        make(CHAIN, f'prune_method: "{name}"', tmp_path)
    for words in said:
        assert words in str(error.value)
    assert set(method_names()) >= {"GReg1_Row", "GReg2_Col", "SFP_Row", "ASRFP_Row", "AFP_Col", "L1_Weight", "Random_Row"}


@pytest.mark.parametrize("groups", [1, 2, 3, 10, 64])
@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.5, 0.9, 0.999])
def test_never_everything(groups: int, ratio: float) -> None:
    assert 0 <= min(L1.count(groups, np.float32(ratio)), groups - 1) < groups


# -- rows that meet ---------------------------------------------------------------------------------------------------

def test_alone(tmp_path: Path) -> None:
    hook = make(BLOCK, 'prune_method: "L1_Row" coupled_rows: ALONE prune_ratios { layer: "[asb]*" prune_ratio: 0.5 }', tmp_path)
    assert ratios(hook) == {"stem": 0.5, "a": 0.5, "b": 0.5, "fc": 0}
    assert not hook.pruner.ties


def test_skip(tmp_path: Path) -> None:
    hook = make(BLOCK, 'prune_method: "L1_Row" coupled_rows: SKIP prune_ratios { layer: "[asb]*" prune_ratio: 0.5 }', tmp_path)
    assert ratios(hook) == {"stem": 0, "a": 0.5, "b": 0, "fc": 0}
    assert hook.layers[0].note == "rows meet: stem, b"


@pytest.mark.parametrize("method", ["L1_Row", "Random_Row", "GReg1_Row", "SFP_Row", "AFP_Row", "Reg_Row"])
def test_together(method: str, tmp_path: Path) -> None:
    """The same rows go, of the least mean score; their channels leave the net, and so the next layer's columns follow."""
    hook = make(BLOCK, f'prune_method: "{method}" coupled_rows: TOGETHER '
                "soft_prune_param { epoch: 1 epochs: 1 } AA: 0.02 target_reg: 0.1 afp_param { prune_iter: 1 } "
                "greg_param { reg_granularity_prune: 9 stabilize_reg_interval: 0 } "
                'prune_ratios { layer: "[asb]*" prune_ratio: 0.5 }', tmp_path)
    assert [[layer.name for layer in tie] for tie in hook.pruner.ties] == [["stem", "b"]]
    stem, _, b, fc = hook.layers
    scores = (stem.weight.tensor.abs().flatten(1).sum(1) + b.weight.tensor.abs().flatten(1).sum(1)).detach()
    hook.solver.step(40 if method == "Reg_Row" else 2)
    assert torch.equal(stem.masks.rows, b.masks.rows) and stem.num_rows == 4
    if method == "L1_Row":
        assert set(stem.masks.rows.nonzero().flatten().tolist()) == set(scores.argsort()[:4].tolist())
    assert fc.num_columns == 4 * 64


def test_one_ratio_is_enough_for_all_that_go_together_if_a_target_gives_the_others(tmp_path: Path) -> None:
    hook = make(BLOCK, 'prune_method: "L1_Row" prune_target { speedup: 2 } '
                'prune_ratios { layer: "b" prune_ratio: 0.25 }', tmp_path)
    found = ratios(hook)
    assert found["stem"] == found["b"] == 0.25 and found["a"] > 0.25


@pytest.mark.parametrize(("given", "said"), [
    ('prune_ratios { layer: "stem" prune_ratio: 0.5 } prune_ratios { layer: "b" prune_ratio: 0.25 }',
     "need one prune_ratio, but have: stem 0.5, b 0.25"),
])
def test_ratios_that_differ(given: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SolverError) as error:
        make(BLOCK, f'prune_method: "L1_Row" {given}', tmp_path)
    assert said in str(error.value)


def test_a_layer_without_a_ratio_keeps_the_others_whole(tmp_path: Path) -> None:
    hook = make(BLOCK, 'prune_method: "L1_Row" prune_ratios { layer: "[ab]" prune_ratio: 0.5 }', tmp_path)
    assert ratios(hook) == {"stem": 0, "a": 0.5, "b": 0, "fc": 0}
    assert hook.layers[2].note == "rows meet those of a layer of prune_ratio 0: stem, b"


def test_depthwise_rows_go_with_what_they_read(tmp_path: Path) -> None:
    hook = make(MOBILE, 'prune_method: "L1_Row" prune_target { speedup: 2 }', tmp_path)
    assert [[layer.name for layer in tie] for tie in hook.pruner.ties] == [["stem", "dw"]]
    hook.solver.step(2)
    stem, dw, pw, _ = hook.layers
    assert torch.equal(stem.masks.rows, dw.masks.rows)
    assert pw.num_columns == stem.num_rows > 0
    assert hook.budget().speedup >= 2


def test_rows_that_meet_in_part_stay(tmp_path: Path) -> None:
    """Channels 0..3 of one sum are those of another layer: one choice of rows cannot serve both."""
    net = (DATA + conv("x", "data", 4) + conv("y", "data", 4) + conv("z", "data", 8)
           + 'layer { name: "both" type: "Concat" bottom: "x" bottom: "y" top: "both" }\n'
           + eltwise("sum", "both", "z") + LOSS % "sum")
    hook = make(net + conv("free", "data", 4) + 'layer { name: "quiet" type: "Silence" bottom: "free" }',
                'prune_method: "L1_Row" prune_ratios { layer: "[xyzf]*" prune_ratio: 0.5 } '
                'prune_ratios { layer: "fc" prune_ratio: 0 }', tmp_path)
    assert {name: ratio for name, ratio in ratios(hook).items() if ratio} == {"free": 0.5}
    assert hook.layers[0].note == "rows meet in part: x, y, z"
    assert [meeting.aligned for meeting in find_ties(hook.layers, hook.pruner.coupling, depthwise=False)] == [False]


# -- the table --------------------------------------------------------------------------------------------------------

def test_what_was_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hook = make(BLOCK, 'prune_method: "SFP_Row" coupled_rows: SKIP soft_prune_param { epoch: 9 } '
                'prune_ratios { layer: "[asb]*" prune_ratio: 0.5 }', tmp_path)
    lines = overview.lines(hook.pruner)
    assert lines[0] == "Pruning by SFP_Row: groups are rows; coupled_rows: SKIP, those that meet other layers' stay"
    cells = {line.split()[0]: line.split() for line in lines[2:-1]}
    assert cells["a"] == ["a", "6", "0.5", "3", "27,648", "13,824", "432", "216"]
    assert cells["b"] == ["b", "-", "0", "-", "27,648", "13,824", "432", "216", "rows", "meet:", "stem,", "b"]
    assert "follows its neighbours" not in lines[-1]
    # 69,120 multiply-adds, of which 27,648 go; 2,616 weights, of which 432 go.
    assert lines[-1].strip() == ("in all: 1.667x fewer multiply-adds (Convolution layers), "
                                 "1.198x fewer weights (all layers)")
    hook.solver.step(1)
    assert capsys.readouterr().out.splitlines()[:len(lines)] == lines
