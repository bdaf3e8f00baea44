"""Coordinate maps and crops against recorded programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_net_spec import Program

from caffe_compat.coord_map import AxisMismatchException, coord_map_from_to, crop, inverse
from caffe_compat.errors import CaffeError
from caffe_compat.pycaffe.net_spec import layers

CASES = json.loads((Path(__file__).parents[1] / "golden" / "pycaffe" / "coord_map.json").read_text())["cases"]
ERRORS = {"AssertionError": AssertionError, "AttributeError": AttributeError, "RuntimeError": RuntimeError,
          "AxisMismatchException": AxisMismatchException}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_recorded_maps(case: dict[str, Any]) -> None:
    program = Program()
    program.run(dict(case, result="n.to_proto()"))
    for query in case["queries"]:
        top_from, top_to = program._read(query["from"]), program._read(query["to"])
        if "error" in query:
            with pytest.raises(ERRORS[query["error"].split(":")[0]]) as caught:
                coord_map_from_to(top_from, top_to)
            assert isinstance(caught.value, CaffeError)
        else:
            axis, scale, shift = coord_map_from_to(top_from, top_to)
            assert axis == query["axis"]
            np.testing.assert_allclose(scale, query["a"], rtol=0, atol=1e-12)
            np.testing.assert_allclose(shift, query["b"], rtol=0, atol=1e-12)
        if "crop_error" in query:
            with pytest.raises(ERRORS[query["crop_error"].split(":")[0]]) as caught:
                crop(top_from, top_to)
            assert isinstance(caught.value, CaffeError)
        else:
            spec = crop(top_from, top_to).to_proto().layer[-1]
            assert spec.type == "Crop"
            assert {"axis": spec.crop_param.axis, "offset": list(spec.crop_param.offset)} == query["crop"]


def test_the_inverse_maps_back() -> None:
    axis, scale, shift = inverse((1, np.array([2.0]), np.array([3.0])))
    assert axis == 1 and scale * (2 * 5 + 3) + shift == 5


def test_many_paths_are_walked_once() -> None:
    top = start = layers.Input(shape={"dim": [1, 1, 8, 8]})
    for _ in range(60):  # 2^60 paths
        top = layers.Eltwise(layers.ReLU(top), layers.TanH(top))
    top = layers.Convolution(top, num_output=1, kernel_size=3)
    assert coord_map_from_to(start, top) == (1, 1, -1)


def test_a_window_without_kernel_size() -> None:
    start = layers.Input(shape={"dim": [1, 1, 8, 8]})
    with pytest.raises(CaffeError, match="without kernel_size"):
        coord_map_from_to(layers.Pooling(start, global_pooling=True), start)
    given = layers.Pooling(start, pooling_param={"kernel_size": 2, "stride": 2})
    assert coord_map_from_to(given, start)[:2] == (1, 2)
