"""Settings that cannot be followed, and what the error says; and those that can."""

from __future__ import annotations

import pytest
from pruning import COMMON, Tiny, config

from caffe_compat.errors import SolverError, UnknownType
from increg.methods import Reg, RegRowAsReference, RegSpa, RegSpaAsReference, method_names

METHOD = COMMON + 'prune_method: "Reg_Col" AA: 0.001 target_reg: 1 acc_borderline: -1 '


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(("more", "said"), [
    ("acc_borderline: 0.99 baseline_acc: 0.9 retrain_test_interval: 1",
     ["baseline_acc is 0.9", "acc_borderline, 0.99", "Set baseline_acc"]),
    ("AA: 0", ["AA", "is 0", "nothing would ever be pruned"]),
    ("target_reg: -1", ["target_reg", "is -1"]),
    ("losseval_interval: -5", ["losseval_interval", "-5"]),
    ("iter_size_prune: 0", ["iter_size_prune is 0", "1 or more"]),
    ("acc_borderline: 0.5 baseline_acc: 0.9", ["set retrain_test_interval"]),
    ('regularization_type: "Reg_Row"', ["prune_method is Reg_Col", "regularization_type is Reg_Row",
                                        "prune_method alone decides", "Reg_Col with RegSpa_Col"]),
    ('prune_method: "None" regularization_type: "Reg_Col"', ["regularization_type is Reg_Col", "prune_method is None",
                                                              'prune_method: "Reg_Col"']),
    ("snapshot_format: HDF5", ["HDF5"]),
])
def test_settings_that_contradict(more: str, said: list[str]) -> None:
    with pytest.raises(SolverError) as error:
        config(_with(more))
    assert str(error.value).startswith("solver: ")
    for part in said:
        assert part in str(error.value)


def _with(more: str) -> str:
    given = [setting.split(":")[0] for setting in more.replace(": ", ":").split()]
    words = METHOD.replace(": ", ":").split()
    return " ".join(word for word in words if word.split(":")[0] not in given) + " " + more


def test_unknown_method_lists_the_known() -> None:
    with pytest.raises(UnknownType) as error:
        config(_with('prune_method: "Reg_Colum"'))
    assert 'prune_method "Reg_Colum"' in str(error.value)
    assert 'did you mean "Reg_Col"?' in str(error.value)
    assert str(error.value).endswith(f"Known: {', '.join(method_names())}")


@pytest.mark.parametrize(("method", "regularization", "sound", "reference"), [
    ("Reg_Col", "Reg_Col", Reg, Reg),
    ("Reg_Col", "L2", Reg, Reg),
    ("Reg_Col", "L1", Reg, Reg),
    ("Reg_Row", "Reg_Row", Reg, RegRowAsReference),
    ("RegSpa_Col", "RegSpa_Col", RegSpa, RegSpa),
    ("Reg_Col", "RegSpa_Col", RegSpa, RegSpaAsReference),
])
def test_which_method(method: str, regularization: str, sound: type, reference: type) -> None:
    text = _with(f'prune_method: "{method}" regularization_type: "{regularization}"')
    assert config(text).method is sound
    assert config(text, as_reference=True).method is reference


def test_no_method_no_hook(tiny: Tiny) -> None:
    solver, hook = tiny.make('prune_method: "None"')
    assert hook is None
    assert solver.hooks == []


RATIO1 = "prune_param { prune_ratio: 0.5 prune_ratio_step: 0.75 }"


@pytest.mark.parametrize(("net", "solver", "said"), [
    ({RATIO1: "prune_param { prune_ratio: 1 }"}, "",
     ["conv1 (", "net.prototxt:5)", "prune_ratio is 1, expected 0 <= prune_ratio < 1"]),
    ({RATIO1: "prune_param { prune_ratio: -0.1 }"}, "", ["prune_ratio is -0.1"]),
    ({RATIO1: "prune_param { prune_ratio: 0.99 }"}, "", ["conv1 (", "this layer has 18", "would leave none"]),
    ({RATIO1: "prune_param { prune_ratio: 0.5 }"}, "acc_borderline: 0.5 baseline_acc: 0.9",
     ["conv1 (", "prune_ratio_step is 0", "in stages"]),
    ({'type: "ReLU"': 'type: "ReLU" prune_param { prune_ratio: 0.5 }'}, "",
     ["relu1 (", "ReLU are not pruned", "set it to 0"]),
    ({"prune_ratio: 0.5 ": "", "prune_ratio: 0.6 ": ""}, "",
     ["prune_method is Reg_Col, but no layer of the net has a prune_ratio", "conv1, conv2, ip"]),
    ({"inner_product_param {": "prune_param { prune_ratio: 0.5 } inner_product_param {"},
     'prune_method: "RegSpa_Col"', ["ip (", "positions of kernels", "set its prune_ratio to 0"]),
    ({'top: "accuracy"': 'top: "score"'}, "", ["retrain_test_interval is 4", 'no output with "ccuracy"', "loss, score. Name"]),
    ({}, 'accuracy_output: "score" retrain_test_interval: 0',
     ['solver.prototxt: the last test net has no output "score" (accuracy_output)', "accuracy, loss"]),
    ({}, 'accuracy_output: "score"', ["retrain_test_interval is 4", 'no output "score" (accuracy_output)', "accuracy, loss"]),
])
def test_nets_that_cannot_be_pruned(tiny: Tiny, net: dict[str, str], solver: str, said: list[str]) -> None:
    with pytest.raises(SolverError) as error:
        tiny.make(solver, net)
    for part in said:
        assert part in str(error.value)


TWIN = """layer { name: "twin" type: "Convolution" bottom: "data" top: "twin" param { name: "w" }
  convolution_param { num_output: 6 kernel_size: 3 } MORE }
layer { name: "silent" type: "Silence" bottom: "twin" }
layer { name: "conv2" """


def test_shared_weights_are_pruned_by_their_owner(tiny: Tiny) -> None:
    net = {"param { lr_mult: 1 }": 'param { lr_mult: 1 name: "w" }', 'layer { name: "conv2" ': TWIN.replace("MORE", "")}
    _, hook = tiny.make(net=net)
    assert [layer.name for layer in hook.layers] == ["conv1", "conv2", "ip"]
    assert [layer.shared for layer in hook.layers] == [True, False, False]
    net['layer { name: "conv2" '] = TWIN.replace("MORE", "prune_param { prune_ratio: 0.5 }")
    with pytest.raises(SolverError, match="uses the weights of another one"):
        tiny.make(net=net)
