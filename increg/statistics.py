"""Statistics that importances are taken from, gathered by passes of the net over the data it trains on.

As OrthoReg's authors gather them (arXiv 2009.05014): as when testing, BatchNorm by its running statistics and without
Dropout, over the first batches that hold more than `samples` samples. Every statistic has the parameters' shapes, one
tensor for each of the net's learnable blobs, None where no gradient arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_compat.errors import SolverError
from caffe_compat.layers.base import Layer
from caffe_compat.net import Net
from caffe_compat.registry import Registry

Values = list[Tensor | None]
#: A statistic: (net, samples, temperature) -> a value for each learnable blob.
Statistic = Callable[[Net, int, float], Values]
STATISTICS: Registry[Statistic] = Registry("statistic")
#: GraSP gives up when a class has not been met often enough in this many times the samples it needs.
PATIENCE = 50


@contextmanager
def as_when_testing(net: Net) -> Iterator[None]:
    """Lets BatchNorm use its running statistics and Dropout pass everything; data are still those of training."""
    contexts = {id(layer.context): layer.context for layer in net.layers}.values()
    before = [context.training for context in contexts]
    for context in contexts:
        context.training = False
    try:
        yield
    finally:
        for context, training in zip(contexts, before):
            context.training = training
        net.clear_param_diffs()


@STATISTICS.add("gradient")
@torch.enable_grad()
def mean_gradient(net: Net, samples: int, temperature: float = 1.0) -> Values:
    """The mean over samples of the loss's gradient; the loss is the net's own, averaged over each batch."""
    with as_when_testing(net):
        net.clear_param_diffs()
        seen = passes = 0
        while seen <= samples:
            net.forward_backward()
            seen, passes = seen + _batch_size(net), passes + 1
        return [None if learnable.blob.grad is None else learnable.blob.grad / passes for learnable in net.learnable]


@STATISTICS.add("curvature")
@torch.enable_grad()
def hessian_gradient(net: Net, samples: int, temperature: float = 200.0) -> Values:
    """H g (GraSP): g the gradient, H the Hessian of the loss of logits / temperature, means over the same samples:
    the first int(samples / classes) met of every class. Two rounds over these data.

    As in the authors' code reading goes on until every class was met once more than that. Raises `SolverError` if one does
    not turn up.
    """
    with as_when_testing(net):
        head = Head(net)
        start = _positions(net)
        weights: list[Tensor] = []
        gradient: Values = [None] * len(head.parameters)
        for share in _class_shares(head, samples):
            weights.append(share)
            _add(gradient, torch.autograd.grad(head.loss(share, temperature), head.parameters, allow_unused=True))
        _go_to(start)
        result: Values = [None] * len(head.parameters)
        for share in weights:
            head.run()
            parts = torch.autograd.grad(head.loss(share, temperature), head.parameters, create_graph=True, allow_unused=True)
            inner = sum((g * part).sum() for g, part in zip(gradient, parts) if part is not None)
            _add(result, torch.autograd.grad(inner, head.parameters, allow_unused=True))
        return head.by_learnable(result)


@STATISTICS.add("sensitivity")
@torch.enable_grad()
def squared_log_gradients(net: Net, samples: int, temperature: float = 1.0) -> Values:
    """Sum over batches and classes of batch size * p_c * (d mean of log p_c / d parameter)^2, p_c the batch's mean
    probability (RD in the KL form); one backward pass for each class and batch."""
    with as_when_testing(net):
        head = Head(net)
        result: Values = [None] * len(head.parameters)
        seen = 0
        while seen <= samples:
            head.run()
            logits = head.logits
            probabilities = logits.detach().softmax(1).mean(0)
            logs = logits.log_softmax(1).mean(0)
            seen += len(logits)
            for c in range(len(logs)):
                grads = torch.autograd.grad(logs[c], head.parameters, retain_graph=c + 1 < len(logs), allow_unused=True)
                _add(result, [None if g is None else g.square().mul_(probabilities[c] * len(logits)) for g in grads])
        return head.by_learnable(result)


class Head:
    """The classes' scores before the net's softmax, with the graph of the last pass, and the labels."""

    def __init__(self, net: Net) -> None:
        self.net = net
        losses = [layer for layer in net.layers if layer.type == "SoftmaxWithLoss"]
        if not losses:
            raise SolverError(f"{net.path}: this importance needs the scores of the classes before a SoftmaxWithLoss, and the "
                              "net has no such layer")
        self.layer = losses[-1]
        self._before = net.layers[net.layers.index(self.layer) - 1].name  # what the loss reads is gone once it ran
        self.indices = [i for i, learnable in enumerate(net.learnable) if learnable.blob.tensor.requires_grad]
        self.parameters = [net.learnable[i].blob.tensor for i in self.indices]

    def run(self) -> None:
        """A forward pass over the next batch."""
        self.net.run(end=self._before)
        bottoms = [self.net.blobs[name].tensor for name in self.layer.spec.bottom]
        self.logits, self.labels = bottoms[0].flatten(1), bottoms[1].flatten().long()
        if len(self.labels) != len(self.logits):
            raise SolverError(f"{self.layer.where}: this importance needs one label an image, found {len(self.labels)} for "
                              f"{len(self.logits)} images")

    def loss(self, share: Tensor, temperature: float) -> Tensor:
        """The sum of the samples' losses, each times its share."""
        return F.cross_entropy(self.logits / temperature, self.labels, reduction="none") @ share

    def by_learnable(self, values: Values) -> Values:
        """Values of `parameters` as values of all learnable blobs."""
        result: Values = [None] * len(self.net.learnable)
        for i, found in zip(self.indices, values):
            result[i] = found
        return result


def _class_shares(head: Head, samples: int) -> Iterator[Tensor]:
    """Runs batch after batch and yields each sample's share in the mean over classes: 1 / (classes n) for the first n met
    of a class, 0 for the others."""
    head.run()
    classes = head.logits.shape[1]
    wanted, seen = max(1, samples // classes), 0
    counts = torch.zeros(classes, dtype=torch.long, device=head.logits.device)
    while True:
        met = F.one_hot(head.labels, classes)
        earlier = (met.cumsum(0) - met + counts).gather(1, head.labels[:, None]).squeeze(1)
        counts += met.sum(0)
        seen += len(head.labels)
        yield (earlier < wanted).to(head.logits.dtype) / (classes * wanted)
        if bool((counts > wanted).all()):
            return
        if seen > PATIENCE * classes * (wanted + 1):
            raise SolverError(f"{head.layer.where}: class {int(counts.argmin())} of {classes} turned up {int(counts.min())} "
                              f"times in {seen} training samples, and {wanted + 1} are needed for this importance; set the "
                              "number of samples lower, or num_output of the last layer to the number of classes there are")
        head.run()


def _positions(net: Net) -> list[tuple[Callable[..., None], object]]:
    """How to come back to where the data are now: functions and what to call them with."""
    layers: list[tuple[Callable[..., None], object]] = [
        (layer.load_state, state) for layer in net.layers if (state := layer.state()) is not None]
    return [*layers, (net.context.rng.set_state, net.context.rng.get_state())]


def _go_to(positions: list[tuple[Callable[..., None], object]]) -> None:
    for go, state in positions:
        go(state)


def _batch_size(net: Net) -> int:
    """The images of the last pass: the first axis of what the first layer makes."""
    first: Layer = net.layers[0]
    return net.blobs[net.top_names[first.name][0]].shape[0]


def _add(totals: Values, values: Values | tuple[Tensor | None, ...]) -> None:
    for i, found in enumerate(values):
        if found is not None:
            totals[i] = found.detach().clone() if totals[i] is None else totals[i].add_(found.detach())
