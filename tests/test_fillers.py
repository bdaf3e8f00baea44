"""The fillers against what Caffe filled, exactly where it is not random and by distribution where it is."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_compat import proto
from caffe_compat.errors import NetError, UnknownType
from caffe_compat.fillers import FILLERS, fill
from caffe_compat.net import Net

FOLDER = Path(__file__).parent / "golden" / "layers"
RECORDS = json.loads((FOLDER / "fillers.json").read_text())
EXACT = [record for record in RECORDS if record["exact"]]
RANDOM = [record for record in RECORDS if not record["exact"]]


def filled(record: dict) -> np.ndarray:
    net = Net(proto.parse_text(record["prototxt"], "NetParameter"), "TRAIN", seed=7)
    values = net.params["layer"][record["param"]].data
    assert list(values.shape) == record["shape"]
    return values


def filler(text: str):
    return proto.parse_text(text, "FillerParameter").message


def filled_by(text: str, *shape: int) -> torch.Tensor:
    tensor = torch.full(shape, float("nan"))
    fill(tensor, filler(text), torch.Generator().manual_seed(5), "conv1 (net.prototxt:3)")
    return tensor


@pytest.mark.parametrize("record", EXACT, ids=lambda record: record["name"])
def test_exact(record):
    with np.load(FOLDER / "Fillers.npz") as recorded:
        expected = recorded[f"{record['name']}/param/{record['param']}"]
    np.testing.assert_allclose(filled(record), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("record", RANDOM, ids=lambda record: record["name"])
def test_distribution(record):
    """Bounds hold for every value; moments within five standard errors."""
    values, expected = filled(record).astype(np.float64), record["expect"]
    if "nonzero_probability" in expected:
        p, kept = expected["nonzero_probability"], values != 0
        assert abs(kept.mean() - p) < 5 * sqrt(p * (1 - p) / values.size)
        values = values[kept]
    if "low" in expected:
        assert expected["low"] - 1e-6 <= values.min() and values.max() <= expected["high"] + 1e-6
        if "std" in expected:
            span = expected["high"] - expected["low"]
            assert values.max() - values.min() > span * (1 - 20 / values.size)
    if "row_sum" in expected:
        assert len(values) == expected["rows"]
        np.testing.assert_allclose(values.reshape(len(values), -1).sum(1), expected["row_sum"], rtol=1e-5)
    else:
        assert abs(values.mean() - expected["mean"]) < 5 * expected["std"] / sqrt(values.size)
        kurtosis = 1.8 if expected["distribution"] == "uniform" else 3.0
        assert abs(values.std() / expected["std"] - 1) < 5 * sqrt((kurtosis - 1) / 4 / values.size)
        found = ((values - values.mean()) ** 4).mean() / values.var() ** 2
        assert abs(found - kurtosis) < 0.3


def test_every_filler_is_recorded():
    assert set(FILLERS.names()) == {record["filler"] for record in RECORDS} - {"default"}


def test_same_seed_same_values():
    text = 'type: "gaussian" std: 0.1 sparse: 3'
    assert torch.equal(filled_by(text, 20, 30), filled_by(text, 20, 30))
    assert not torch.equal(filled_by('type: "xavier"', 20, 30)[:, :15], filled_by('type: "xavier"', 20, 30)[:, 15:])


def test_unknown_filler_names_place_and_remedy():
    message = r'conv1 \(net.prototxt:3\): unknown filler "xaver" \(did you mean "xavier"\?\)'
    with pytest.raises(UnknownType, match=message):
        filled_by('type: "xaver"', 2, 3)


@pytest.mark.parametrize("text, shape, message", [
    ('type: "xavier" sparse: 2', (2, 3), "sparse: 2"),
    ('type: "uniform" min: 1 max: 0', (2, 3), "min <= max"),
    ('type: "gaussian" std: 0', (2, 3), "std > 0"),
    ('type: "gaussian" sparse: 3', (2, 3), "between 0 and the 2 outputs"),
    ('type: "gaussian" sparse: -2', (2, 3), "between 0 and the 2 outputs"),
    ('type: "bilinear"', (2, 3), "4 axes"),
    ('type: "bilinear"', (2, 1, 3, 4), "square"),
    ('type: "msra"', (), "blob with axes"),
    ('type: "constant"', (2, 0), "empty"),
])
def test_what_cannot_be_filled(text, shape, message):
    with pytest.raises(NetError, match=message) as caught:
        filled_by(text, *shape)
    assert "conv1 (net.prototxt:3)" in str(caught.value)
