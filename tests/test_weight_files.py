"""Weight files against real Caffe: what it saved is loaded, what we save is what it saves, odd files do what they do
there. `golden/caffemodel` has the files and what came of them.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import h5py
import numpy as np
import pytest

from caffe_compat import cli, hdf5, proto
from caffe_compat.errors import CaffeError, ParseError, WeightError
from caffe_compat.net import Net
from caffe_compat.solver import Solver

FOLDER = Path(__file__).parent / "golden" / "caffemodel"
CASES = json.loads((FOLDER / "cases.json").read_text())
OTHER = {case["name"]: case for case in CASES["other"]}
MODELS = ("net.caffemodel", "net.caffemodel.h5")


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    """The arrays of net.npz."""
    with np.load(FOLDER / "net.npz") as file:
        return dict(file)


def loaded(model: str) -> Net:
    net = Net(FOLDER / "net.prototxt", "TEST", seed=1)
    net.copy_from(FOLDER / model)
    return net


def params(net: Net) -> dict[str, np.ndarray]:
    return {f"{name}|{i}": blob.data.copy() for name, blobs in net.params.items() for i, blob in enumerate(blobs)}


# -- Caffe's files here -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_what_caffe_saved(model: str, recorded: dict[str, np.ndarray]) -> None:
    """All parameters, exactly, and what a forward pass makes of them."""
    net = loaded(model)
    found = params(net)
    assert {f"param/{name}" for name in found} == {name for name in recorded if name.startswith("param/")}
    for name, values in found.items():
        np.testing.assert_array_equal(values, recorded[f"param/{name}"], err_msg=name)
    net.blobs["x"].data[...] = recorded["x"]
    net.forward()
    blobs = [name for name in recorded if name.startswith("blob/")]
    assert len(blobs) == 10
    for name in blobs:
        scale = abs(recorded[name]).max()
        np.testing.assert_allclose(net.blobs[name[5:]].data, recorded[name], rtol=0, atol=1e-5 * scale, err_msg=name)


def test_shared_parameters_stay_shared() -> None:
    """Loading from HDF5, which has them once, is no reason to find the second layer missing."""
    net = Net(FOLDER / "net.prototxt", "TEST", seed=1)
    report = net.copy_from(FOLDER / "net.caffemodel.h5")
    assert net.params["twin_a"][0] is net.params["twin_b"][0]
    assert "twin_a" in report.copied and not report.missing and not report.unused


# -- ours, as Caffe would write them ----------------------------------------------------------------------------------


def described(path: Path) -> list[dict]:
    """The layers of a caffemodel in the words of cases.json."""
    def value(message, field):
        return getattr(message, field) if message.HasField(field) else None

    def multipliers(param):
        return {name: value(param, name) for name in ("lr_mult", "decay_mult")}

    return [{"name": layer.name, "type": layer.type, "phase": layer.phase, "has_phase": layer.HasField("phase"),
             "param": [{"name": param.name, **multipliers(param)} for param in layer.param],
             "blobs": [list(blob.shape.dim) for blob in layer.blobs]}
            for layer in proto.BVLC.message("NetParameter").FromString(path.read_bytes()).layer]


@pytest.mark.parametrize("model", MODELS)
def test_ours_is_what_caffe_saves(model: str, tmp_path: Path) -> None:
    """Field by field, as recorded; in fact byte by byte."""
    path = tmp_path / "net.caffemodel"
    loaded(model).save(path)
    assert described(path) == CASES["caffemodel_layers"] == described(FOLDER / "net.caffemodel")
    message = proto.BVLC.message("NetParameter").FromString(path.read_bytes())
    assert {"name": message.name, "has_state": message.HasField("state")} == CASES["net_fields"]
    assert path.read_bytes() == (FOLDER / "net.caffemodel").read_bytes()


def contents(path: Path) -> list[dict]:
    items: list[dict] = []
    with h5py.File(path) as file:
        file.visititems(lambda name, item: items.append(
            {"path": name, "group": True} if isinstance(item, h5py.Group)
            else {"path": name, "shape": list(item.shape), "dtype": str(item.dtype)}))
    return items


def test_hdf5_layout_is_caffes(tmp_path: Path) -> None:
    path = tmp_path / "net.caffemodel.h5"
    net = loaded("net.caffemodel")
    net.save(path)
    assert contents(path) == CASES["hdf5_contents"] == contents(FOLDER / "net.caffemodel.h5")
    with h5py.File(path) as ours, h5py.File(FOLDER / "net.caffemodel.h5") as caffes:
        for item in CASES["hdf5_contents"]:
            if "shape" in item:
                np.testing.assert_array_equal(ours[item["path"]], caffes[item["path"]])


def test_diffs_are_saved_when_asked_for(tmp_path: Path) -> None:
    """In HDF5 those of shared copies too, as Caffe does."""
    net = loaded("net.caffemodel")
    for number, blob in enumerate(blob for blobs in net.params.values() for blob in blobs):
        blob.diff[...] = number
    net.save(tmp_path / "net.h5", with_diffs=True)
    with h5py.File(tmp_path / "net.h5") as file:
        assert set(file["diff"]) == set(file["data"]) and set(file["diff/twin_b"]) == {"0", "1"}
        np.testing.assert_array_equal(file["diff/sc/1"], net.params["sc"][1].diff)
    net.save(tmp_path / "net.caffemodel", with_diffs=True)
    document = proto.read_binary(tmp_path / "net.caffemodel", "NetParameter")
    np.testing.assert_array_equal(document.diffs["layer", 3, "blobs", 1], net.params["sc"][1].diff)


def test_slashes_in_layer_names(tmp_path: Path) -> None:
    """Caffe cannot save such a net as HDF5 ("Error saving weights"); here it is saved and comes back."""
    assert "Error saving weights" in CASES["hdf5_save_with_slash_in_layer_name"]
    text = (FOLDER / "target.prototxt").read_text().replace('name: "ip"', 'name: "block/ip"')
    nets = [Net(proto.parse_text(text, "NetParameter"), seed=seed) for seed in (1, 2)]
    nets[0].params["c"][0].data[...] = 5
    nets[0].params["block/ip"][1].data[...] = 7
    nets[0].save(tmp_path / "net.h5")
    assert nets[1].copy_from(tmp_path / "net.h5").copied == ["block/ip", "c", "ip2"]
    for name, values in params(nets[0]).items():
        np.testing.assert_array_equal(params(nets[1])[name], values)


# -- legacy and unusual files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, case in OTHER.items() if "changed" in case])
def test_other_files(name: str) -> None:
    """The blobs that changed are Caffe's, all others what they were."""
    net = Net(FOLDER / OTHER[name]["target"], "TEST", seed=1)
    before = params(net)
    net.copy_from(FOLDER / OTHER[name]["file"])
    after = params(net)
    with np.load(FOLDER / "other.npz") as arrays:
        for key, values in after.items():
            expected = arrays[f"{name}/{key}"] if key in OTHER[name]["changed"] else before[key]
            np.testing.assert_array_equal(values, expected, err_msg=key)


REFUSALS = {
    "four_axes_in_new_shape_field": r"ip/0: shape mismatch, the file has 1 1 3 64 \(192\), the net 3 64 \(192\)",
    "missing_bias": "ip: the file has 1 blobs for this layer, the net 2",
    "transposed": r"ip/0: shape mismatch, the file has 64 3 \(192\), the net 3 64 \(192\)",
    "old_shape_wrong_place": r"ip/0: shape mismatch, the file has 1 3 64 1 \(192\), the net 3 64 \(192\)",
}


@pytest.mark.parametrize("name", [name for name, case in OTHER.items() if "refused" in case])
def test_other_files_that_are_refused(name: str) -> None:
    net = Net(FOLDER / OTHER[name]["target"], "TEST", seed=1)
    with pytest.raises(WeightError, match=f"{name}.caffemodel: {REFUSALS[name]}"):
        net.copy_from(FOLDER / OTHER[name]["file"])


@pytest.mark.parametrize("name", [name for name, case in OTHER.items() if "layers" in case])
def test_upgraded_files(name: str, tmp_path: Path) -> None:
    """Our upgrade tool writes what Caffe's does: the old four numbers stay, and so do the values."""
    source = FOLDER / "other" / f"{name.removesuffix('_upgraded')}.caffemodel"
    assert cli.main(["upgrade_net_proto_binary", str(source), str(tmp_path / "new.caffemodel")]) == 0
    ours, caffes = (proto.read_binary(path, "NetParameter", upgrade=False)
                    for path in (tmp_path / "new.caffemodel", FOLDER / OTHER[name]["file"]))
    found = [{"name": layer.name, "type": layer.type,
              "blobs": [[blob.num, blob.channels, blob.height, blob.width] for blob in layer.blobs]}
             for layer in ours.message.layer]
    assert found == OTHER[name]["layers"]
    assert ours.message == caffes.message
    assert ours.arrays.keys() == caffes.arrays.keys()
    for key, values in caffes.arrays.items():
        np.testing.assert_array_equal(ours.arrays[key], values)


# -- shared in part, wrong in part ------------------------------------------------------------------------------------

PARTLY_SHARED = """
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 4 } } }
layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" %s inner_product_param { num_output: 4 } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" %s inner_product_param { num_output: 4 } }
"""
SHARING = {
    "weights": ('param { name: "w" } param { }', ["1"]),
    "biases": ('param { } param { name: "b" }', ["0"]),
    "all": ('param { name: "w" } param { name: "b" }', []),
}


@pytest.mark.parametrize("what", SHARING)
def test_layers_that_share_a_part(what: str, tmp_path: Path) -> None:
    """HDF5 files have the blobs that a layer owns, under their own numbers."""
    setting, kept = SHARING[what]
    nets = [Net(proto.parse_text(PARTLY_SHARED % (setting, setting), "NetParameter")) for _ in range(2)]
    for number, blob in enumerate(blob for blobs in nets[0].params.values() for blob in blobs):
        blob.data[...] = number
    nets[0].save(tmp_path / "net.h5")
    with h5py.File(tmp_path / "net.h5") as file:
        assert sorted(file["data/b"]) == kept
    nets[1].copy_from(tmp_path / "net.h5")
    for name, values in params(nets[0]).items():
        np.testing.assert_array_equal(params(nets[1])[name], values, err_msg=name)
    apart = Net(proto.parse_text(PARTLY_SHARED % ("", ""), "NetParameter"))
    with pytest.raises(WeightError, match=f"b: the file has {len(kept)} blobs for this layer, the net 2"):
        apart.copy_from(tmp_path / "net.h5")


def test_a_layer_without_the_blobs_that_the_net_has() -> None:
    """Refused, as in Caffe, not left as it is."""
    net = loaded("net.caffemodel")
    document = net.to_document()
    index = next(i for i, layer in enumerate(document.message.layer) if layer.name == "fc")
    document.message.layer[index].ClearField("blobs")
    for j in range(2):
        del document.arrays["layer", index, "blobs", j]
    with pytest.raises(WeightError, match="fc: the file has 0 blobs for this layer, the net 2"):
        net.copy_from(document)


def test_source_layers_that_are_left_out_are_named(caplog: pytest.LogCaptureFixture) -> None:
    net = Net(FOLDER / "target.prototxt", seed=1)
    with caplog.at_level(logging.INFO, "caffe_compat"):
        report = net.copy_from(FOLDER / OTHER["extra_and_mistyped_layers"]["file"])
    assert report.unused == ["unknown"] and "Ignoring source layer unknown" in caplog.text


@pytest.mark.parametrize("field", [True, False])
def test_weights_of_layers_that_only_a_test_net_has(field: bool, tmp_path: Path) -> None:
    """Caffe gives the weights to the test nets too, be it those of the solver's field or those it is told later."""
    text = PARTLY_SHARED % ("", "") + """
        layer { name: "only" type: "InnerProduct" bottom: "b" top: "only" include { phase: TEST }
          inner_product_param { num_output: 2 } }
        layer { name: "loss" type: "EuclideanLoss" bottom: "b" bottom: "x" top: "loss" }"""
    (tmp_path / "net.prototxt").write_text(text)
    source = Net(tmp_path / "net.prototxt", "TEST")
    for number, blob in enumerate(blob for blobs in source.params.values() for blob in blobs):
        blob.data[...] = number + 1
    source.save(tmp_path / "net.caffemodel")
    weights = f'weights: "{tmp_path}/net.caffemodel"' if field else ""
    (tmp_path / "solver.prototxt").write_text(
        f'net: "{tmp_path}/net.prototxt" test_iter: 1 test_interval: 1 base_lr: 0 lr_policy: "fixed" {weights}')
    solver = Solver(tmp_path / "solver.prototxt", device="cpu")
    if not field:
        solver.load_weights(str(tmp_path / "net.caffemodel"))
    solver.test_all()
    for name, values in params(source).items():
        np.testing.assert_array_equal(params(solver.test_nets[0])[name], values, err_msg=name)


def damaged(path: Path) -> dict[str, tuple[str, Path]]:
    """HDF5 files that are not Caffe's, by what is wrong with them, and what must be said of it."""
    def file(name: str, *items: tuple[str, object]) -> Path:
        with h5py.File(path / name, "w") as new:
            for key, value in items:
                new[key] = value
        return path / name

    cut = path / "cut.h5"
    cut.write_bytes((FOLDER / "net.caffemodel.h5").read_bytes()[:9000])
    return {
        "cut off": ("not a readable HDF5 file", cut),
        "other data": ('no group "data", expected a file that Caffe wrote; found: label', file("a.h5", ("label", [1]))),
        "data, not a group": ('no group "data"', file("b.h5", ("data", [1.0]))),
        "named blobs": ("data sets are called 0, 1, ...; found kernel", file("c.h5", ("data/ip/kernel", [1.0]))),
        "text": ('no data set of numbers "0" in /data/ip', file("d.h5", ("data/ip/0", "text"))),
        "wrong shape": ("ip/0: shape mismatch", file("e.h5", ("data/ip/0", [1.0]), ("data/ip/1", [1.0, 2.0, 3.0]))),
        "too many": ("the file has 3 blobs", file("f.h5", *((f"data/ip/{i}", [1.0]) for i in range(3)))),
        "no weights": ("no layer of the file is in the net", file("g.h5", ("data/other/0", [1.0]))),
    }


@pytest.mark.parametrize("what", ["cut off", "other data", "data, not a group", "named blobs", "text", "wrong shape",
                                  "too many", "no weights"])
def test_damaged_hdf5(what: str, tmp_path: Path) -> None:
    message, path = damaged(tmp_path)[what]
    net = Net(FOLDER / "target.prototxt", seed=1)
    with pytest.raises(CaffeError) as error:
        net.copy_from(path)
    assert message in str(error.value) and str(path) in str(error.value)


STATES = {
    "no iter": ([("history/0", [1.0])], 'no data set of numbers "iter" in /'),
    "iter is text": ([("iter", "5")], 'no data set of numbers "iter"'),
    "two iters": ([("iter", [5, 6])], "iter has 2 values, expected one"),
    "no history": ([("iter", [5]), ("current_step", [0])], 'no group "history"'),
    "a gap": ([("iter", [5]), ("current_step", [0]), ("history/1", [1.0])], 'no data set of numbers "0" in /history'),
}


@pytest.mark.parametrize("what", STATES)
def test_damaged_hdf5_states(what: str, tmp_path: Path) -> None:
    items, message = STATES[what]
    path = str(tmp_path / "x.solverstate.h5")
    with h5py.File(path, "w") as file:
        for key, value in items:
            file[key] = value
    with pytest.raises(ParseError) as error:
        hdf5.read_state(path, proto.BVLC)
    assert message in str(error.value) and path in str(error.value)


def test_two_layers_of_one_name_are_not_for_hdf5(tmp_path: Path) -> None:
    """Their blobs would have one place; nothing is left behind."""
    text = PARTLY_SHARED.replace('name: "b" type', 'name: "a" type') % ("", "")
    net = Net(proto.parse_text(text, "NetParameter"))
    with pytest.raises(WeightError, match='layer "a" cannot be written to HDF5'):
        net.save(tmp_path / "net.h5")
    assert not list(tmp_path.iterdir())
