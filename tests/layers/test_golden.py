"""Every layer case recorded from Caffe, through `Net`; every registered type has such cases or a test of its own."""

from __future__ import annotations

from pathlib import Path

import golden
import pytest

from caffe_compat.layers import LAYERS

#: In-place layers of which Caffe's result is a defect, and what it is. Ours is the same in place as not in place.
NOT_AS_RECORDED = {
    "BNLL_inplace": "Caffe's backward takes the layer's output for its input",
    "Clip_inplace": "Caffe tests the clipped values, so that every gradient passes",
    "Eltwise_sum_coeff_inplace": "Caffe clears the shared buffer before it reads the first bottom",
    "Log_inplace": "Caffe's backward overwrites the top diff before it reads it",
    "Power_power2_inplace": "Caffe's backward overwrites the top diff before it reads it",
    "Power_scale_shift_inplace": "Caffe's backward overwrites the top diff before it reads it",
    "ReLU_negative_negative_slope_inplace": "Caffe goes by the sign of the output, which a negative slope turns around",
}

#: The test file of each type that no recording exists for.
OWN_TESTS = {
    "Data": "test_data.py",
    "DetectionOutput": "test_ssd.py",
    "HDF5Output": "test_sources.py",
    "ImageData": "test_image_data.py",
    "Normalize": "test_ssd.py",
    "Permute": "test_ssd.py",
    "PriorBox": "test_ssd.py",
    "Python": "test_python.py",
    "Silence": "test_utility.py",
    "WindowData": "test_image_data.py",
}
RECORDED = sorted({case["type"] for case in golden.all_cases()})


def as_recorded(*types: str) -> list[dict]:
    return [case for case in golden.cases(*types) if case["name"] not in NOT_AS_RECORDED]


@pytest.mark.parametrize("case", as_recorded(*RECORDED), ids=lambda case: case["name"])
def test_case(case):
    """Forward and backward give what Caffe gave."""
    golden.check(case)


@pytest.mark.gpu
@pytest.mark.parametrize("type", RECORDED)
def test_cases_on_a_gpu(type):
    """So they do on CUDA."""
    for case in as_recorded(type):
        golden.check(case, "cuda")


@pytest.mark.parametrize("name", NOT_AS_RECORDED)
def test_in_place_is_as_not_in_place(name):
    """Where Caffe's in-place layer is wrong, ours gives what the layer gives with a top of its own."""
    case = golden.case_named(name)
    assert case["quirk"]
    (bottom,) = case["tops"]
    head, layer = case["prototxt"].split('name: "layer"')
    layer = layer.replace(f'top: "{bottom}"', 'top: "t"')
    apart = dict(case, prototxt=f'{head}name: "layer"{layer}')
    nets = [golden.build(variant) for variant in (case, apart)]
    for net, top in zip(nets, (bottom, "t")):
        golden.run_forward(net, case)
        net.blobs[top].diff[...] = golden.recorded(case, "top_diff")[bottom]
    golden.compare(nets[0].blobs[bottom].data, nets[1].blobs["t"].data, f"{name}: top")
    for net in nets:
        net.backward()
    golden.compare(nets[0].blobs[bottom].diff, nets[1].blobs[bottom].diff, f"{name}: diff of the bottom")


def test_every_type_is_tested():
    """A type that is registered is recorded, or has a test file of its own that names it."""
    for name in LAYERS.names():
        if name not in RECORDED:
            assert name in OWN_TESTS, f"layer type {name} has no recorded case and no test in OWN_TESTS"
            assert f'"{name}"' in (Path(__file__).parent / OWN_TESTS[name]).read_text(), f"{OWN_TESTS[name]}: {name}"
