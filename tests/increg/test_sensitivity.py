"""`increg sensitivity`: the accuracies are those of nets pruned by a solver, and nothing of the net is left changed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from digits import Digits, accuracy

from caffe_compat.net import Net
from increg.cli import main
from increg.sensitivity import Cost, Scan


@pytest.fixture
def net(residual_digits: Digits) -> Net:
    """The trained net, with accuracies of 400 images in 4 batches."""
    net = Net(residual_digits.folder / "net.prototxt", "TEST", keep_blobs=False)
    net.copy_from(residual_digits.weights)
    return net


@pytest.mark.parametrize(("method", "layers"), [
    ("L1_Row", ["stem", "outer"]), ("L1_Row", ["inner"]), ("L2_Col", ["last"]), ("L1_Channel", ["ip"]),
    ("L1_Spatial", ["inner"]), ("Largest_Weight", ["outer"])])
def test_as_a_solver_prunes_it(method: str, layers: list[str], net: Net, residual_digits: Digits) -> None:
    """Rows that meet in a sum go together, and neighbours follow."""
    scan = Scan(net, method, 4)
    (group,) = [group for group in scan.groups if [layer.name for layer in group] == layers]
    cost = scan.cost(group, (0.3, 0.8))
    rules = " ".join(f'prune_ratios {{ layer: "{name}" prune_ratio: 0.8 }}' for name in layers)
    solver, hook = residual_digits.make(f'prune_method: "{method}" {rules} base_lr: 0 weight_decay: 0 max_iter: 2', "sensitive")
    solver.load_weights(residual_digits.weights)
    solver.step(1)
    # What the iteration did to batch normalization's statistics is not part of the question.
    statistics = Net(residual_digits.folder / "net.prototxt", "TEST")
    statistics.copy_from(residual_digits.weights)
    for name, blobs in statistics.params.items():
        if name.endswith("_bn"):
            for mine, theirs in zip(solver.net.params[name], blobs):
                mine.data[...] = theirs.data
    assert cost.accuracies[1] == pytest.approx(accuracy(solver), abs=1e-6)
    assert cost.accuracies[1] < cost.accuracies[0] <= scan.accuracy() + 0.01
    assert cost.speedups[1] == pytest.approx(hook.budget().speedup)


def test_nothing_is_left_changed(net: Net) -> None:
    """Neither weights nor the place in the data: 3 batches are not all of the images."""
    before = {name: [blob.tensor.detach().clone() for blob in blobs] for name, blobs in net.params.items()}
    scan = Scan(net, "L1_Row", 3)
    whole = scan.accuracy()
    costs = [scan.cost(group, (0.5,)) for group in scan.groups]
    assert [cost.layers for cost in costs] == [("stem", "outer"), ("inner",), ("last",)]
    assert scan.accuracy() == whole and scan.cost(scan.groups[0], (0.5,)) == costs[0]
    for name, blobs in net.params.items():
        assert all(torch.equal(blob.tensor, old) for blob, old in zip(blobs, before[name]))
    assert scan.skipped == {"ip": "its rows are needed by what cannot be pruned"}


def test_the_largest_ratio_comes_before_the_first_fall() -> None:
    cost = Cost(("a",), 10, (0.98, 0.96, 0.97, 0.5), (1.0,) * 4)
    assert [cost.largest((0.1, 0.2, 0.3, 0.4), least) for least in (0.99, 0.97, 0.96, 0.4)] == [0, 0.1, 0.3, 0.4]


def test_command(residual_digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it suggests is what a solver takes, and what the file holds."""
    words = [str(residual_digits.folder / "net.prototxt"), residual_digits.weights, "--ratios", "0.5", "0.1", "--points", "3",
             "--iterations", "4", "--json", str(tmp_path / "found.json")]
    assert main(["sensitivity", *words]) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    lines = re.findall(r"^prune_ratios .*$", said, re.MULTILINE)
    assert len(lines) == len(found["suggested"]) and found["ratios"] == [0.1, 0.5]
    assert found["suggested"]["stem"] == found["suggested"]["outer"]
    _, hook = residual_digits.make(f'prune_method: "L1_Row" {" ".join(lines)} max_iter: 1', "suggested")
    assert {layer.name: pytest.approx(float(layer.ratio)) for layer in hook.layers if layer.prunes} == found["suggested"]
    for cost in found["costs"]:
        numbers = "  ".join(f"{100 * value:.2f}" for value in cost["accuracies"])
        assert re.search(rf"^{re.escape(' + '.join(cost['layers']))}\s+{cost['groups']}\s+{numbers}$", said, re.MULTILINE)
    assert "ip is not pruned: its rows are needed" in said


@pytest.mark.parametrize(("words", "said"), [
    (["--method", "Reg_Col"], "Reg_Col prunes while it trains, and nothing is trained here; expected one of L1_Channel, "),
    (["--method", "L3_Row"], 'unknown prune_method "L3_Row"'),
    (["--method", "L1_Colum"], 'unknown prune_method "L1_Colum" (did you mean "L1_Col"?)'),
    (["--json", "nowhere/found.json"], "--json nowhere/found.json: there is no such folder to write to"),
    (["--ratios", "0.5", "1"], "--ratios: found 0.5, 1, expected numbers between 0 and 1"),
    (["--output", "acuracy"], 'no output acuracy; name the one to watch with --output, of which more must be better. '
                              'There is accuracy (did you mean "accuracy"?)'),
])
def test_bad_input(words: list[str], said: str, residual_digits: Digits, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(residual_digits.folder / "net.prototxt"), residual_digits.weights]
    assert main(["sensitivity", *files, *words]) == 1
    assert said in capsys.readouterr().err


def test_outputs_of_many_numbers_are_not_watched(residual_digits: Digits, tmp_path: Path,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    """Caffe's Accuracy can tell it class by class, too."""
    path = tmp_path / "net.prototxt"
    text = (residual_digits.folder / "net.prototxt").read_text()
    path.write_text(text.replace('top: "accuracy"', 'top: "accuracy" top: "class_accuracy"'))
    words = ["sensitivity", str(path), residual_digits.weights, "--ratios", "0.5", "--iterations", "1"]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("accuracy in percent")
    assert main([*words, "--output", "class_accuracy"]) == 1
    assert "There are accuracy, class_accuracy (no single number, but 10)" in capsys.readouterr().err


def test_nets_that_cannot_be_tested(residual_digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.prototxt"
    for text, said in (
            ('layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 8 dim: 8 } } } '
             'layer { name: "stem" type: "Convolution" bottom: "data" top: "stem" convolution_param { num_output: 12 '
             "kernel_size: 3 bias_term: false } }", "reads no data of its own (data must be given); take the net"),
            ((residual_digits.folder / "net.prototxt").read_text().replace('name: "inner"', 'name: "other"'),
             "has no weights for other; is it of the net in")):
        path.write_text(text)
        assert main(["sensitivity", str(path), residual_digits.weights]) == 1
        assert said in capsys.readouterr().err
