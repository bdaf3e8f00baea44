"""The published architectures against BVLC Caffe: definitions, shapes, counts, and outputs with weights by a recipe.

The recordings and the recipe are described in tests/golden/nets/README.md.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caffe_compat import proto
from caffe_compat.db import create_database, make_datum
from caffe_compat.net import Net
from caffe_compat.proto import Document
from prototxt.architectures import DEPLOY, EXPERIMENTS, NOT_KEPT, TRAIN_VAL

FOLDER = Path(__file__).parent / "golden" / "nets"
PROTOTXT = Path(__file__).parents[1] / "prototxt"
RECORDED = sorted(path.stem for path in FOLDER.glob("*.json"))
TRAINING = sorted(path.stem for path in (FOLDER / "train_test").glob("*.json"))
SEED = 42
#: Relative to a blob's own standard deviation. The recordings vary by up to 5e-5 when weights and input are changed by
#: one unit in the last place.
TOLERANCE = 1e-4


def recorded(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def layers_of(net: Net) -> list[dict[str, Any]]:
    return [{"name": layer.name, "type": layer.type, "bottoms": net.bottom_names[layer.name],
             "tops": net.top_names[layer.name]} for layer in net.layers]


def blobs_of(net: Net) -> dict[str, list[int]]:
    return {name: list(blob.shape) for name, blob in net.blobs.items()}


def params_of(net: Net) -> list[dict[str, Any]]:
    return [{"layer": name, "index": index, "shape": list(blob.shape), "count": blob.count}
            for name, blobs in net.params.items() for index, blob in enumerate(blobs)]


def macs_of(net: Net) -> list[dict[str, Any]]:
    """Multiply-adds for one image, biases not counted: every weight once for each place of the output."""
    found = []
    for layer in net.layers:
        if layer.type in ("Convolution", "InnerProduct"):
            places = np.prod(net.blobs[layer.spec.top[0]].shape[2:], dtype=np.int64)
            found.append({"layer": layer.name, "type": layer.type, "macs": int(layer.blobs[0].count * places)})
    return found


def weights(kind: str, layer: str, index: int, shape: tuple[int, ...]) -> np.ndarray:
    """Blob `index` of `layer` by the recipe."""
    rng = np.random.RandomState(zlib.crc32(f"{layer}/{index}".encode()) & 0x7FFFFFFF)
    if kind == "BatchNorm" and index:
        return 0.5 + rng.rand(*shape) if index == 1 else np.ones(shape)
    values = rng.standard_normal(shape)
    if kind == "Scale" and index == 0:
        values *= 0.1
        values += 1
        return values
    values *= np.sqrt(2 / np.prod(shape[1:])) if kind in ("Convolution", "InnerProduct") and index == 0 else 0.1
    return values


def build(name: str, device: torch.device | str = "cpu") -> Net:
    """The deploy net, reshaped to the recorded input."""
    net = Net(Document(DEPLOY.get(name)(), proto.BVLC), "TEST", device=device)
    given = recorded(name)["input"]
    assert list(net.blobs[given["blob"]].shape) == given["declared_shape"]
    net.blobs[given["blob"]].reshape(*given["shape"])
    net.reshape()
    return net


def fill(net: Net, expected: dict[str, Any]) -> None:
    """Weights and input by the recipe, which is checked against the first values recorded."""
    first = {(check["layer"], check["index"]): check["first"] for check in expected["weight_check"]}
    assert first
    for layer in net.layers:
        for index, blob in enumerate(layer.blobs):
            values = weights(layer.type, layer.name, index, blob.shape).astype(np.float32)
            if (layer.name, index) in first:
                np.testing.assert_allclose(values.ravel()[:4], first[layer.name, index][:values.size], rtol=1e-6)
            blob.data[...] = values
    given = expected["input"]
    image = np.random.RandomState(given["seed"]).standard_normal(given["shape"]).astype(np.float32)
    np.testing.assert_allclose(image.ravel()[:4], expected["input_first"], rtol=1e-6)
    net.blobs[given["blob"]].data[...] = image


def check_blobs(net: Net, stored: dict[str, np.ndarray]) -> None:
    """Mean, standard deviation and eight values of every blob, relative to its standard deviation."""
    errors = {}
    for i, name in enumerate(stored["blob_names"]):
        values, deviation = net.blobs[str(name)].data.astype(np.float64).ravel(), stored["std"][i]
        samples = np.abs(values[stored["sample_index"][i]] - stored["sample_value"][i]).max()
        differences = abs(values.mean() - stored["mean"][i]), abs(values.std() - deviation), samples
        errors[str(name)] = max(differences) / deviation if deviation else max(differences)
    wrong = {name: error for name, error in errors.items() if not error <= TOLERANCE}
    assert not wrong, f"{len(wrong)} of {len(errors)} blobs differ, first {next(iter(wrong.items()))}"


@pytest.mark.parametrize("name", RECORDED)
def test_definition(name: str) -> None:
    """Layers with their Splits, blobs, parameters and multiply-adds are Caffe's."""
    expected = recorded(name)
    net = build(name)
    assert net.name == expected["net_name"]
    assert layers_of(net) == expected["layers"]
    assert blobs_of(net) == {blob["name"]: blob["shape"] for blob in expected["blobs"]}
    assert params_of(net) == expected["params"]
    assert sum(param["count"] for param in params_of(net)) == expected["parameter_count"]
    assert macs_of(net) == expected["macs_per_image"]
    assert net.outputs == expected["outputs"]


@pytest.mark.parametrize("name", RECORDED)
def test_output(name: str, device: torch.device) -> None:
    """Every blob has Caffe's values, and the outputs (before a final Softmax too) have them throughout."""
    expected = recorded(name)
    net = build(name, device)
    fill(net, expected)
    net.forward()
    with np.load(FOLDER / f"{name}.npz") as file:
        stored = dict(file)
    check_blobs(net, stored)
    whole = [key for key in stored if key.startswith(("output/", "pre_softmax/"))]
    assert len(whole) == len(expected["outputs"]) + len(expected["pre_softmax"])
    for key in whole:
        found = net.blobs[key.partition("/")[2]].data
        np.testing.assert_allclose(found, stored[key], rtol=0, atol=TOLERANCE * stored[key].std(), err_msg=key)


@pytest.mark.parametrize("name", [name for name in RECORDED if name not in NOT_KEPT])
@pytest.mark.parametrize(("kind", "definitions"), [("deploy", DEPLOY), ("train_val", TRAIN_VAL)])
def test_files_are_what_the_generators_write(name: str, kind: str, definitions: Any) -> None:
    """After a change run `python -m prototxt.architectures`."""
    path = PROTOTXT / name / f"{kind}.prototxt"
    if name in definitions:
        assert path.read_text() == proto.dump_text(definitions.get(name)())
    else:  # some are experiments' (tests/test_prototxts.py)
        assert path.exists() == (name in EXPERIMENTS and path.name in EXPERIMENTS.get(name)())


@pytest.fixture
def databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes a one-image LMDB, or a mean file, at every path that a definition names, in an empty
    folder; images are `shape` (channels, height, width)."""
    monkeypatch.chdir(tmp_path)

    def make(message: Any, shape: tuple[int, ...]) -> None:
        for layer in message.layer:
            if layer.type != "Data":
                continue
            source, mean = Path(layer.data_param.source), Path(layer.transform_param.mean_file)
            source.parent.mkdir(parents=True, exist_ok=True)
            with create_database(source) as writer:
                writer.put(b"0", make_datum(np.zeros(shape, np.uint8), 3).SerializeToString())
            if mean.name and not mean.exists():
                mean.parent.mkdir(parents=True, exist_ok=True)
                blob = proto.BVLC.message("BlobProto")(shape={"dim": (1, *shape)}, data=np.zeros(np.prod(shape)))
                mean.write_bytes(blob.SerializeToString())

    return make


@pytest.mark.parametrize("name", TRAINING)
def test_train_val_definition(name: str, databases: Any) -> None:
    """In both phases: layers, blobs, parameters, loss weights and outputs of the net to train are Caffe's."""
    expected = recorded(f"train_test/{name}")
    message = TRAIN_VAL.get(name.partition("_train_")[0])()
    databases(message, tuple(expected["image_shape"]))
    net = Net(Document(message, proto.BVLC), expected["phase"], seed=SEED)
    assert layers_of(net) == expected["layers"]
    assert blobs_of(net) == {blob["name"]: blob["shape"] for blob in expected["blobs"]}
    assert params_of(net) == expected["params"]
    assert sum(param["count"] for param in params_of(net)) == expected["parameter_count"]
    assert net.outputs == expected["outputs"]
    assert net.loss_weights == pytest.approx(expected["loss_weights"], rel=1e-6)


def test_every_training_definition_is_recorded() -> None:
    """So that none goes unchecked."""
    assert {name.partition("_train_")[0] for name in TRAINING} == set(TRAIN_VAL.names())
    assert set(RECORDED) == set(DEPLOY.names())
