"""Which layers remain, where Splits go, what gets a gradient: equal to what Caffe does with the same nets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from caffe_compat import Net, Solver
from caffe_compat.errors import CaffeError

FOLDER = Path(__file__).parent / "golden" / "filtering"
RECORDED = json.loads((FOLDER / "cases.json").read_text())


#: Caffe stops on any SoftmaxWithLoss with two tops (its loss weights are counted wrong); here the second top works.
ACCEPTED = {"07a_refused_two_consumed_loss_tops", "07f_two_tops_one_consumed"}


def name_of(case: dict) -> str:
    if "solver" in case:
        return Path(case["solver"]).stem
    return "-".join([Path(case["net"]).stem, case["phase"], str(case["level"]), *case["stages"]])


def described(net: Net) -> list[dict]:
    return [{"name": layer.name, "type": layer.type, "bottoms": list(layer.spec.bottom),
             "tops": net.top_names[layer.name], "params": len(layer.blobs)} for layer in net.layers]


@pytest.mark.parametrize("case", RECORDED["cases"], ids=name_of)
def test_net(case: dict) -> None:
    def build() -> Net:
        return Net(FOLDER / case["net"], case["phase"], level=case["level"], stages=case["stages"])

    if Path(case["net"]).stem in ACCEPTED:
        assert build().forward()
        return
    if "refused" in case:
        with pytest.raises(CaffeError, match=Path(case["net"]).name):
            build()
        return
    net = build()
    # Caffe names the made-up tops of loss layers nowhere but in its list of blobs.
    found = [{**layer, "tops": [top for top in layer["tops"] if top != "(automatic)"]} for layer in described(net)]
    expected = [{**layer, "tops": [top for top in layer["tops"] if top != "(automatic)"]} for layer in case["layers"]]
    assert found == expected
    assert list(net.blobs) == list(dict.fromkeys(case["blobs"]))
    assert net.inputs == case["inputs"]
    assert net.outputs == case["outputs"]
    assert net.loss_weights == dict(case["loss_weights"])
    if "needs_backward" in case and not net.force_backward:
        assert net.needs_backward == case["needs_backward"]
    if case.get("total_loss") is not None:
        check_gradients(net, case)


def check_gradients(net: Net, case: dict) -> None:
    for blobs in net.params.values():
        for blob in blobs:
            k = np.arange(blob.count).reshape(blob.shape)
            blob.data[...] = 0.1 * (1 + k) * (-1.0) ** k
    loss = net.forward_backward()
    assert float(loss) == pytest.approx(case["total_loss"], rel=1e-5)
    for key, values in case["param_gradients"].items():
        layer, index = key.rsplit("|", 1)
        diff = net.params[layer][int(index)].diff
        np.testing.assert_allclose(diff.ravel(), values, rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("case", RECORDED["solver_cases"], ids=name_of)
def test_nets_of_a_solver(case: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    if "refused" in case:
        with pytest.raises(CaffeError):
            Solver(case["solver"])
        return
    solver = Solver(case["solver"])
    for net, recorded in zip([solver.net, *solver.test_nets], [case["train"], *case["test"]], strict=True):
        assert described(net) == recorded["layers"]
        assert net.outputs == recorded["outputs"]
        assert net.loss_weights == dict(recorded["loss_weights"])
