"""The layer cases recorded from BVLC Caffe (tests/golden/layers): loading one, running it through `Net`, comparing.

    case = case_named("ReLU_4d")          # or: for case in cases("ReLU", "PReLU")
    check(case)                           # builds the net, runs it as recorded, compares all arrays

A case is a dictionary of cases.json; tests/golden/layers/README.md says what its keys and arrays are.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, chdir, nullcontext
from functools import cache
from pathlib import Path

import numpy as np

from caffe_compat import proto
from caffe_compat.net import Net

FOLDER = Path(__file__).parents[1] / "golden" / "layers"
#: The tolerance that the recordings are compared with: float32 sums taken in another order.
RTOL, ATOL = 1e-4, 1e-5


@cache
def all_cases() -> list[dict]:
    """Every case, in the order recorded."""
    return json.loads((FOLDER / "cases.json").read_text())


def cases(*types: str) -> list[dict]:
    """The cases of the given layer types."""
    return [case for case in all_cases() if case["type"] in types]


def case_named(name: str) -> dict:
    """The case called `name`."""
    return next(case for case in all_cases() if case["name"] == name)


@cache
def _file(type: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{type}.npz") as file:
        return dict(file)


def recorded(case: dict, kind: str) -> dict[str, np.ndarray]:
    """The arrays `<case>/<kind>/<key>` by key; kind is bottom, param, top, param_after, top_diff, bottom_diff, ..."""
    prefix = f"{case['name']}/{kind}/"
    return {key[len(prefix):]: value for key, value in _file(case["type"]).items() if key.startswith(prefix)}


def folder_of(case: dict) -> AbstractContextManager:
    """Changes to FOLDER for a case whose net names files relative to it."""
    return chdir(FOLDER) if case["needs_cwd"] else nullcontext()


def build(case: dict, device: str = "cpu") -> Net:
    """The case's net with the recorded parameters; call it in `folder_of(case)`."""
    net = Net(proto.parse_text(case["prototxt"], "NetParameter"), case["phase"], seed=1, device=device)
    for index, value in recorded(case, "param").items():
        net.params["layer"][int(index)].data[...] = value
    if case["feed"] == "memory_data":
        bottom = recorded(case, "bottom")
        net.layer_dict["layer"].set_input_arrays(bottom["data"], bottom["label"])
    return net


def run_forward(net: Net, case: dict) -> None:
    """The recorded number of forward passes, the same inputs before each."""
    inputs = recorded(case, "bottom")
    for _ in range(case["n_forward"]):
        for name in case["inputs"]:
            net.blobs[name].data[...] = inputs[name]
        net.forward()


def run_backward(net: Net, case: dict) -> None:
    """The recorded number of backward passes, the same top diffs before each."""
    for _ in range(case["n_backward"]):
        for name, value in recorded(case, "top_diff").items():
            net.blobs[name].diff[...] = value
        net.backward()


def compare(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    """Equal shapes, and values within the recordings' tolerance."""
    assert found.shape == expected.shape, f"{what}: shape {found.shape}, Caffe's is {expected.shape}"
    np.testing.assert_allclose(found, expected, RTOL, ATOL, err_msg=what)


def check_forward(net: Net, case: dict) -> None:
    """Compares the tops, and the parameters where they were recorded after forward."""
    for name, value in recorded(case, "top").items():
        compare(net.blobs[name].data, value, f"{case['name']}: top {name}")
    for index, value in recorded(case, "param_after").items():
        compare(net.params["layer"][int(index)].data, value, f"{case['name']}: parameter {index} after forward")
    if case["net_loss"] is not None:
        compare(np.asarray(float(net.loss)), np.asarray(case["net_loss"]), f"{case['name']}: loss")


def check_backward(net: Net, case: dict) -> None:
    """Compares the diffs of bottoms and parameters."""
    for name, value in recorded(case, "bottom_diff").items():
        compare(net.blobs[name].diff, value, f"{case['name']}: diff of bottom {name}")
    for index, value in recorded(case, "param_diff").items():
        compare(net.params["layer"][int(index)].diff, value, f"{case['name']}: diff of parameter {index}")


def check(case: dict, device: str = "cpu") -> None:
    """Runs the case as it was recorded and compares everything it holds."""
    with folder_of(case):
        net = build(case, device)
        run_forward(net, case)
        check_forward(net, case)
        if case["has_backward"]:
            run_backward(net, case)
            check_backward(net, case)
