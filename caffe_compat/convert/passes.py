"""Which passes a conversion takes, and those that leave out what it does not need; `fold` has those that compute."""

from __future__ import annotations

from ..errors import NetError
from .fold import fold, preprocess
from .graph import Graph, Node, Pass
from .targets import Options


def passes_for(options: Options) -> list[Pass]:
    """The passes that the options ask for, in the order to run them."""
    passes: list[Pass] = [drop_silent]
    if not options.keep_losses:
        passes.append(drop_losses)
    if options.inference:
        passes.append(drop_identities)
    if options.fold:
        passes.append(fold)
    if options.preprocesses:
        passes.append(preprocess(options))
    return [*passes, *options.passes]


def drop_silent(graph: Graph) -> None:
    """Takes out the layers that make nothing: Silence and HDF5Output."""
    graph.nodes = [node for node in graph.nodes if node.type not in ("Silence", "HDF5Output")]
    graph.drop_unread_inputs()


def is_measure(node: Node) -> bool:
    """Whether a layer tells how good the net is: a loss, or the accuracy."""
    return node.layer.is_loss or node.type == "Accuracy"


def drop_losses(graph: Graph) -> None:
    """Takes out losses and accuracies, and what only they read: labels, and layers on the way to them.

    What they judge becomes an output where nothing else reads it. Raises `NetError` for a net that is nothing else.
    """
    dropped = [node for node in graph.nodes if is_measure(node)]
    if not dropped:
        return
    graph.nodes = [node for node in graph.nodes if not is_measure(node)]
    made = {value for node in dropped for value in node.outputs}
    read = {value for node in graph.nodes for value in node.inputs}
    judged = [value for node in dropped for k, value in enumerate(node.inputs) if k in _judged(node)]
    outputs = [value for value in graph.outputs if value not in made]
    outputs += [value for value in judged if value not in read and value not in graph.inputs]
    graph.outputs = list(dict.fromkeys(outputs))
    if not graph.outputs:
        raise NetError(f"{graph.name}: without its losses nothing is left of this net; keep them")
    drop_unused(graph)


def _judged(node: Node) -> tuple[int, ...]:
    """The bottoms of a loss that are the net's answer, not what it is compared with."""
    if node.type == "Accuracy":
        return (0,)
    return tuple(k for k in range(len(node.inputs)) if k not in node.layer.undifferentiable)


def drop_identities(graph: Graph) -> None:
    """Takes out what does nothing but in training: Dropout."""
    for node in list(graph.nodes):
        if node.type == "Dropout":
            graph.bypass(node)


def drop_unused(graph: Graph) -> None:
    """Takes out nodes and inputs from which nothing leads to an output."""
    needed = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if needed & set(node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    graph.nodes = kept[::-1]
    graph.drop_unread_inputs()
