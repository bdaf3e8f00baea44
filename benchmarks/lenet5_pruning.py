"""LeNet-5 pruned with IncReg, 16 images an iteration, LMDB reading included, side by side with plain PyTorch loops.

    python benchmarks/lenet5_pruning.py [--iterations 200] [--rounds 7]

All run in this process, in turns, on one thread. The PyTorch loops take their images from memory, already scaled: they
read no database. Needs scikit-learn (its digits, enlarged to 28x28, are the images).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from contextlib import chdir

import torch
from timing import HookClock, seconds_per_iteration, show, show_share
from torch import Tensor, nn

from caffe_compat import Solver, create_solver, proto
from caffe_compat.memory import keep_freed_memory
from caffe_compat.net import Net
from increg import experiments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=100, help="iterations a round (default 100)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, the median of which counts (default 7)")
    args = parser.parse_args()
    keep_freed_memory()  # as the commands do
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        experiments.make_digits(".")
        images, labels = _images()
        pruning = _solver(prune=True)
        contenders = {
            "PyTorch, as written naively": _loop(images, labels, torch.contiguous_format),
            "PyTorch, channels_last": _loop(images, labels, torch.channels_last),
            "caffe_compat, training": _solver(prune=False).step,
            "caffe_compat, pruning": pruning.step,
        }
        clock = HookClock(pruning)
        seconds = seconds_per_iteration(contenders, args.iterations, args.rounds)
    show(seconds, "PyTorch, as written naively")
    show_share(seconds["caffe_compat, training"], seconds["caffe_compat, pruning"], clock)


def _solver(prune: bool) -> Solver:
    document = proto.read_text(str(experiments.folder("lenet5") / "solver.prototxt"), "SolverParameter")
    document.message.ClearField("snapshot")
    document.message.net = str(experiments.folder("digits") / "train_val.prototxt")
    document.message.random_seed = 1
    if not prune:
        document.message.prune_method, document.message.regularization_type = "None", "L2"
    return create_solver(document, device="cpu", keep_blobs=False)


def _images() -> tuple[Tensor, Tensor]:
    """The training images as the Data layer delivers them, and their labels, all of them."""
    net = Net(str(experiments.folder("digits") / "train_val.prototxt"), "TRAIN")
    batches = []
    for _ in range(80):
        net.forward(end="digits")
        batches.append((net.blobs["data"].tensor.clone(), net.blobs["label"].tensor.long()))
    images, labels = zip(*batches)
    return torch.cat(images), torch.cat(labels)


def _loop(images: Tensor, labels: Tensor, memory_format: torch.memory_format) -> Callable[[int], object]:
    """The usual training loop of the usual LeNet-5."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    ).to(memory_format=memory_format)
    images = images.to(memory_format=memory_format)
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    optimizer = torch.optim.SGD([{"params": weights}, {"params": biases, "lr": 0.001}], lr=0.0005, momentum=0.9,
                                weight_decay=0.00025)
    loss_function = nn.CrossEntropyLoss()

    def run(iterations: int) -> None:
        for i in range(iterations):
            start = i * 16 % (len(images) - 15)
            optimizer.zero_grad()
            loss_function(model(images[start:start + 16]), labels[start:start + 16]).backward()
            optimizer.step()

    return run


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
