"""Importances, statistics and pruning in rounds on the net of the recordings, against OrthoReg's authors' code."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from pruning import layer_state

from caffe_compat import Net, proto
from caffe_compat.db import create_database, make_datum
from increg import coupling, filters, ranking
from increg.importance import ESTIMATORS, Filters
from increg.statistics import STATISTICS, as_when_testing

GOLDEN = Path(__file__).parents[1] / "golden" / "methods" / "orthoreg"
CASES = json.loads((GOLDEN / "cases.json").read_text())
SETTINGS = CASES["estimators"]
#: Our names of the authors' estimators.
NAMES = {"fisher": "Fisher", "orthoreg": "Fisher", "tfo": "Taylor", "l1": "L1", "sfp": "L2", "bn": "BNScale", "rdt": "RD",
         "grasp": "GraSP"}
#: Fisher and Taylor square sums that cancel.
TOLERANCES = {"fisher": 1e-4, "orthoreg": 1e-4, "tfo": 1e-4}


@cache
def recorded() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "estimators.npz") as file:
        return dict(file)


def prototxt(folder: Path) -> str:
    """Convolution with bias, ReLU, batch norm, five times pooled, one linear layer."""
    net = SETTINGS["net"]
    text = f"""layer {{ name: "data" type: "Data" top: "data" top: "label" transform_param {{ mean_value: 1.5 }}
      data_param {{ source: "{folder}/db" batch_size: {SETTINGS['batch_size']} backend: LMDB }} }}"""
    bottom, position = "data", 0
    for size in net["layout"]:
        if size == "M":
            text += f"""layer {{ name: "pool{position}" type: "Pooling" bottom: "{bottom}" top: "pool{position}"
              pooling_param {{ pool: MAX kernel_size: 2 stride: 2 }} }}"""
            bottom, position = f"pool{position}", position + 1
            continue
        top = f"features.{position}"
        text += f"""
        layer {{ name: "{top}" type: "Convolution" bottom: "{bottom}" top: "{top}"
          convolution_param {{ num_output: {size} kernel_size: 3 pad: 1 }} }}
        layer {{ name: "relu{position}" type: "ReLU" bottom: "{top}" top: "{top}" }}
        layer {{ name: "features.{position + 2}" type: "BatchNorm" bottom: "{top}" top: "bn{position}" }}
        layer {{ name: "scale{position}" type: "Scale" bottom: "bn{position}" top: "bn{position}"
          scale_param {{ bias_term: true }} }}"""
        bottom, position = f"bn{position}", position + 3
    return text + f"""
    layer {{ name: "classifier" type: "InnerProduct" bottom: "{bottom}" top: "scores"
      inner_product_param {{ num_output: {net['classes']} }} }}
    layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "scores" bottom: "label" top: "loss" }}"""


class Recorded:
    """The recorded net in training phase, its layers, and how filters are pruned in it."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        data = recorded()
        with create_database(folder / "db") as writer:
            for i, (image, label) in enumerate(zip(data["data/x_levels"], data["data/y"])):
                writer.put(b"%08d" % i, make_datum(image, int(label)).SerializeToString())
        self.net = Net(proto.parse_text(prototxt(folder), "NetParameter"), "TRAIN", keep_blobs={"scores"}, device=device)
        for name, blobs in self.net.params.items():
            self._fill(name, blobs)
        device = self.net.device
        names = [*SETTINGS["net"]["convolutions"], "classifier"]
        self.layers = []
        for i, name in enumerate(names):
            blobs = self.net.params[name]
            state = layer_state(name, blobs[0].shape, i)
            state.weight, state.masks = blobs[0], type(state.masks)(state.layout, device)
            state.learnable = next(k for k, one in enumerate(self.net.learnable) if one.blob is blobs[0])
            self.layers.append(state)
        self.places = filters.places(self.net, self.layers)
        self.links = coupling.from_net(self.net, self.layers, device)
        self._unpruned: dict[str, list[torch.Tensor]] = {}
        self._start = [(layer, layer.state()) for layer in self.net.layers if layer.state() is not None]
        self._weights = [learnable.blob.tensor.detach().clone() for learnable in self.net.learnable]

    def _fill(self, name: str, blobs: list) -> None:
        data = recorded()
        if name.startswith("scale"):
            name, kinds = f"features.{int(name[5:]) + 2}", ("weight", "bias")
        else:
            kinds = ("weight", "bias") if f"net/{name}.running_mean" not in data else ("running_mean", "running_var")
        for blob, kind in zip(blobs, kinds):
            blob.data[...] = data[f"net/{name}.{kind}"]
        if kinds[0] == "running_mean":
            blobs[2].data[...] = 1

    def importances(self, name: str, samples: int = SETTINGS["num_stop"]) -> list[torch.Tensor]:
        """Of the filters left of every convolution; data from the first image on, as in the recordings."""
        estimator = ESTIMATORS.get(name)
        for layer, state in self._start:
            layer.load_state(state)
        statistic = None
        if estimator.statistic:
            temperature = SETTINGS["grasp_temperature"]
            statistic = STATISTICS.get(estimator.statistic)(self.net, samples, temperature)
        own = [learnable.blob.tensor.detach() for learnable in self.net.learnable]
        return [estimator(filters.cut(layer, place, own),
                          None if statistic is None else filters.cut(layer, place, statistic))
                for layer, place in zip(self.layers[:-1], self.places)]

    def unpruned(self, name: str) -> list[torch.Tensor]:
        """The importances in the net as it was; computed once."""
        if name not in self._unpruned:
            self._unpruned[name] = self.importances(name)
        return self._unpruned[name]

    @torch.no_grad()
    def prune(self, chosen: list[torch.Tensor]) -> None:
        """Prunes of every convolution the filters chosen among those left, and the columns that read them."""
        for layer, part in zip(self.layers, chosen):
            left = (~layer.masks.rows).nonzero().squeeze(1)
            rows = torch.zeros_like(layer.masks.rows)
            rows[left[part]] = True
            layer.masks.add_rows(rows)
        for index, columns in self.links.idle_columns(self.layers).items():
            self.layers[index].masks.add_columns(columns)
        for layer in self.layers:
            layer.masks.apply(layer.weight.tensor)

    @torch.no_grad()
    def restore(self) -> None:
        """Unprunes everything."""
        for learnable, weight in zip(self.net.learnable, self._weights):
            learnable.blob.tensor.copy_(weight)
        for layer in self.layers:
            layer.masks.set(torch.zeros_like(layer.masks.rows), torch.zeros_like(layer.masks.columns))


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded(tmp_path_factory.mktemp("recorded"))


def test_the_net_is_the_recorded_one(net: Recorded) -> None:
    net.restore()
    net.importances("L1")
    with as_when_testing(net.net), torch.no_grad():
        net.net.run()
    found = net.net.blobs["scores"].tensor
    np.testing.assert_allclose(found, recorded()["output_of_first_batch"], rtol=0, atol=1e-5)
    assert net.net.context.training


def test_every_estimator_is_recorded() -> None:
    assert set(NAMES.values()) == set(ESTIMATORS.names()) - {"PlainBNScale"}
    assert {ESTIMATORS.get(name).statistic for name in ESTIMATORS.names()} - {""} == set(STATISTICS.names())


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"orthoreg"}))
def test_importances_as_recorded(net: Recorded, name: str) -> None:
    net.restore()
    data = recorded()
    for layer, found in zip(net.layers, net.unpruned(NAMES[name])):
        wanted = data[f"importance/{name}/{layer.name}"]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCES.get(name, 1e-5) * np.abs(wanted).max(),
                                   err_msg=layer.name)


def test_mean_gradient_as_recorded(net: Recorded) -> None:
    net.restore()
    net.importances("L1")
    values = STATISTICS.get("gradient")(net.net, SETTINGS["num_stop"], 1.0)
    by_name = {}
    for learnable, grad in zip(net.net.learnable, values):
        by_name[learnable.layer_name, learnable.index] = grad
    for key in (key for key in recorded() if key.startswith("mean_gradient/")):
        name, kind = key.removeprefix("mean_gradient/").rsplit(".", 1)
        name = name if (name, 0) in by_name and by_name[name, 0] is not None else f"scale{int(name.split('.')[1]) - 2}"
        np.testing.assert_allclose(by_name[name, ("weight", "bias").index(kind)], recorded()[key], rtol=0,
                                   atol=1e-5 * np.abs(recorded()[key]).max(), err_msg=key)


@pytest.mark.parametrize("run", CASES["ranking"]["runs"],
                         ids=lambda run: f"{run['estimator']}-{run['percent']}-{run['rounds']}")
def test_runs_as_recorded(net: Recorded, run: dict) -> None:
    """Importances on the net as pruned so far, ranking over the net, protection, cut; exactly the recorded filters."""
    net.restore()
    originals = [layer.layout.rows for layer in net.layers[:-1]]
    for i, (ratio, wanted) in enumerate(zip(run["round_ratios"], run["each_round"])):
        name = NAMES[run["estimator"]]
        found = net.importances(name) if i else net.unpruned(name)
        count = ranking.count_to_prune(ratio, sum(map(len, found)))
        chosen = ranking.least([ranking.protect(values, original) for values, original in zip(found, originals)], count)
        assert [part.nonzero().squeeze(1).tolist() for part in chosen] == wanted["pruned"], f"round {i + 1}"
        net.prune(chosen)
        key = f"pruned_output/{run['estimator']}_{run['percent']}_{run['rounds']}/round{i + 1}"
        if key in recorded():
            net.importances("L1")
            with as_when_testing(net.net), torch.no_grad():
                net.net.run()
            # what is pruned writes and feeds nothing, so the masked net's outputs are the cut net's
            np.testing.assert_allclose(net.net.blobs["scores"].tensor[:4], recorded()[key], rtol=0, atol=1e-5)


def test_the_scale_alone() -> None:
    """As OrthoReg's authors take it in nets other than VGG."""
    filters = Filters(torch.ones(2, 18), None, torch.tensor([0.5, -2.0]))
    assert ESTIMATORS.get("PlainBNScale")(filters).tolist() == [0.5, 2]
    assert ESTIMATORS.get("BNScale")(filters).tolist() == pytest.approx([0.5 / 18, 2 / 18])


@pytest.mark.parametrize("name", ESTIMATORS.names())
@pytest.mark.parametrize("count", [1, 3])
def test_degenerate_layers(name: str, count: int) -> None:
    """All zero, one filter, no columns left: numbers, and equal ones for equal filters."""
    estimator = ESTIMATORS.get(name)
    for columns in (0, 4):
        zeros = Filters(torch.zeros(count, columns), torch.zeros(count), torch.zeros(count))
        found = estimator(zeros, zeros)
        assert found.shape == (count,)
        assert torch.isfinite(found).all()
        assert (found == found[0]).all()
