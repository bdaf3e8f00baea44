"""How long forward passes take, side by side: contenders take turns, and each one's fastest pass counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from caffe_compat.errors import CaffeError
from caffe_compat.net import Net
from caffe_compat.proto import Document


def fastest(contenders: Mapping[str, Callable[[], object]], device: torch.device, *, seconds: float = 1.0, rounds: int = 5,
            clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Seconds of each contender's fastest call: `rounds` turns at least, and about `seconds` for each contender.

    Time on the `clock`; on a GPU until its queue is empty.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    while min(map(len, times.values())) < rounds or sum(map(sum, times.values())) < seconds * len(contenders):
        for name, run in contenders.items():
            wait()
            start = clock()
            run()
            wait()
            times[name].append(clock() - start)
    return {name: min(found) for name, found in times.items()}


def running(document: Document, weights: Net, batch: int, device: torch.device) -> Callable[[], object]:
    """A forward pass of the net with the parameters of `weights`, on random images; raises `CaffeError` for a net with
    data of its own."""
    net = Net(document, "TEST", device=device, keep_blobs=False)
    if not net.inputs:
        raise CaffeError(f"{document.path}: a net that reads data of its own is not timed")
    for name, blobs in net.params.items():
        for blob, source in zip(blobs, weights.params[name]):
            blob.tensor.data.copy_(source.tensor.detach())
    for name in net.inputs:
        shape = (batch, *net.blobs[name].shape[1:])
        net.blobs[name].reshape(*shape)
        net.blobs[name].write(torch.randn(shape, generator=torch.Generator().manual_seed(1)).numpy())
    return net.forward
