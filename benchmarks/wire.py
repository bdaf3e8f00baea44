"""How fast a large caffemodel is read and written, and in how much memory: `python benchmarks/wire.py [megabytes]`.

Makes a caffemodel in a temporary folder (550 MB by default: VGG-16's size). "Reading" is `read_binary` and a copy of
every blob into a fresh array; it is held against reading the file's bytes and copying them once. Every measurement
runs in a process of its own, so that peak memory is its own; times are the best of three.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from caffe_compat import proto


def make(path: str, megabytes: int) -> None:
    """A net of 16 layers, of which one holds three quarters of the weights, as in VGG-16."""
    message = proto.BVLC.message("NetParameter")(name="large")
    document = proto.Document(message, proto.BVLC)
    values = megabytes * 1_000_000 // 4
    for index in range(16):
        layer = message.layer.add(name=f"layer{index}", type="InnerProduct")
        layer.blobs.add()
        count = values * 3 // 4 if index == 13 else values // 60
        document.arrays["layer", index, "blobs", 0] = np.ones((count // 64, 64), np.float32)
    proto.write_binary(path, document)


def plain(path: str) -> object:
    """The yardstick: the file's bytes, and one copy of them."""
    data = np.frombuffer(Path(path).read_bytes(), np.uint8)
    return data.copy()


def read(path: str) -> object:
    """What a net does: every blob in an array of its own."""
    document = proto.read_binary(path, "NetParameter")
    return {key: np.array(array) for key, array in document.arrays.items()}


def views(path: str) -> object:
    """The document alone."""
    return proto.read_binary(path, "NetParameter")


def write(path: str) -> object:
    """Read, and written again from the views."""
    proto.write_binary(path + ".copy", proto.read_binary(path, "NetParameter"))
    Path(path + ".copy").unlink()
    return None


def child(name: str, path: str) -> None:
    proto.BVLC.descriptor("NetParameter")  # reading the schema is not what is measured
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(3):
        start = time.perf_counter()
        result = globals()[name](path)
        times.append(time.perf_counter() - start)
        del result
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(min(times), (after - before) * 1024)


def measure(name: str, path: str) -> tuple[float, float]:
    """Seconds, and the growth of the peak memory in bytes."""
    command = [sys.executable, __file__, "--child", name, path]
    seconds, peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), float(peak)


def main() -> None:
    start = time.perf_counter()
    proto.BVLC.descriptor("NetParameter")
    print(f"reading the schema: {1000 * (time.perf_counter() - start):.1f} ms (under 50)")
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 550
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "large.caffemodel")
        make(path, megabytes)
        size = Path(path).stat().st_size
        yardstick, _ = measure("plain", path)
        print(f"{size / 1e6:.0f} MB; its bytes and one copy: {yardstick:.3f} s")
        for name, limits in (("read", "under 2x time, 2.2x memory"), ("views", ""), ("write", "")):
            seconds, peak = measure(name, path)
            ratios = f"{seconds:.3f} s = {seconds / yardstick:.2f}x; peak {peak / size:.2f}x the size"
            print(f"{name:6} {ratios}  {limits}".rstrip())


if __name__ == "__main__":
    child(*sys.argv[2:]) if sys.argv[1:2] == ["--child"] else main()
