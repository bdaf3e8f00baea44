"""A cascade found in the wild (MTCNN): nets and weights of Caffe's older formats give what Caffe gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_compat.net import Net


@pytest.mark.parametrize("name", ["det1", "det2", "det3"])
def test_outputs(name: str, shared: Path) -> None:
    """All outputs on real input, the sizes of which are not those of the prototxt."""
    folder = shared / "data" / "mtcnn"
    files = [folder / f"{name}.prototxt", folder / f"{name}.caffemodel", folder / "expected.npz"]
    missing = [path.name for path in files if not path.exists()]
    if missing:
        pytest.skip(f"{', '.join(missing)} not found in ../shared/data/mtcnn")
    with np.load(files[2]) as arrays:
        expected = {key.partition("/")[2]: arrays[key] for key in arrays if key.startswith(f"{name}/")}
    net = Net(files[0])
    report = net.copy_from(files[1])
    assert not report.missing
    data = expected.pop("data")
    net.blobs["data"].reshape(*data.shape)
    net.blobs["data"].data[...] = data
    assert set(net.forward()) == set(expected)
    for blob, values in expected.items():
        np.testing.assert_allclose(net.blobs[blob].data, values, rtol=0, atol=1e-5, err_msg=blob)
