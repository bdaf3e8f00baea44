"""How much of each layer is pruned: from prune_param, the solver's patterns, or a target for the whole net.

`settle` gives every layer its ratio, decides what becomes of rows that meet other layers' rows, and numbers the layers
that are pruned. `meet` gives ratios that meet a target again once weights tell which groups are likely to go. `foresee`
tells what will be left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from math import floor

import numpy as np
import torch

from caffe_compat.errors import SolverError

from .budget import Budget, measure
from .config import PruneConfig
from .coupling import Coupling
from .groups import Masks
from .state import LayerState
from .ties import Meeting, Tie, find_ties, needed_rows
from .units import Row, Weight

_f = np.float32
#: By layer name, the layer's groups in the order in which they go, (groups,) int64.
Orders = Mapping[str, torch.Tensor]
#: The uniform ratio is a multiple of 1 / STEPS.
STEPS = 10000


def settle(layers: Sequence[LayerState], config: PruneConfig, coupling: Coupling) -> list[Tie]:
    """Sets `ratio` and `table_index` of the layers; returns the ties whose rows are pruned together.

    Raises `SolverError` for ratios that cannot be followed, targets that cannot be met, and if nothing is to be pruned.
    """
    _apply_patterns(layers, config)
    ties = _couple(layers, config, coupling)
    if config.target is not None:
        meet(layers, config, coupling, ties)
    for tie in ties:
        _agree(tie)
    ties = [tie for tie in ties if tie[0].ratio > 0]
    pruned = [layer for layer in layers if layer.ratio > 0]
    for number, layer in enumerate(pruned):
        _check(layer, config)
        layer.table_index = number
    if not pruned:
        names = ", ".join(layer.name for layer in layers) or "none"
        skipped = "; ".join(f"{layer.name} is not: {layer.note}" for layer in layers if layer.note)
        raise SolverError(f"{config.where}: prune_method is {config.name}, but no layer of the net has a prune_ratio"
                          f"{f' that can be followed ({skipped})' if skipped else ''}. "
                          f"Give prune_param {{ prune_ratio: 0.5 }} to some of these layers: {names}")
    return ties


def _apply_patterns(layers: Sequence[LayerState], config: PruneConfig) -> None:
    for rule in config.ratios:
        if rule.HasField("prune_ratio") and not 0 <= rule.prune_ratio < 1:
            raise SolverError(f'{config.where}: prune_ratios "{rule.layer}": prune_ratio is {rule.prune_ratio:g}, expected '
                              "0 <= prune_ratio < 1")
        matches = [layer for layer in layers if fnmatchcase(layer.name, rule.layer)]
        if not matches:
            raise SolverError(f'{config.where}: prune_ratios "{rule.layer}" matches none of the layers that can be pruned: '
                              f"{', '.join(layer.name for layer in layers)}")
        for layer in matches:
            if rule.HasField("prune_ratio"):
                layer.ratio, layer.explicit = _f(rule.prune_ratio), True
            if rule.HasField("prune_ratio_step"):
                layer.ratio_step = _f(rule.prune_ratio_step)
            if rule.HasField("IF_update_row_col"):
                layer.update = rule.IF_update_row_col


# -- coupled rows -----------------------------------------------------------------------------------------------------

def _couple(layers: Sequence[LayerState], config: PruneConfig, coupling: Coupling) -> list[Tie]:
    """The ties, if rows go together; layers are taken out that cannot follow."""
    if not isinstance(config.unit, Row) or config.coupled == "ALONE":
        return []
    together = config.coupled == "TOGETHER"
    needed = needed_rows(layers, coupling)
    whole = {layer.name for layer in needed}
    for layer in needed:
        _skip(layer, "its rows are needed by what cannot be pruned", config)
    ties = []
    for meeting in find_ties(layers, coupling, depthwise=together):
        why = _apart(meeting, whole, config) if together else "rows meet"
        if why is None:
            ties.append(meeting.layers)
            continue
        names = [layer.name for layer in meeting.layers]
        for layer in meeting.layers:
            _skip(layer, f"{why}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}", config)
    return ties


def _apart(meeting: Meeting, whole: set[str], config: PruneConfig) -> str | None:
    """Why the rows of some layers cannot go together, some of which stay `whole`; None if they can: then a ratio given to
    one is that of all."""
    layers = meeting.layers
    if not meeting.aligned:
        return "rows meet in part"
    if any(layer.name in whole for layer in layers):
        return "rows meet those of a layer that stays whole"
    given = {float(layer.ratio) for layer in layers if layer.explicit or config.target is None}
    if 0 in given:
        return "rows meet those of a layer of prune_ratio 0"
    if len(given) > 1:
        shown = ", ".join(f"{layer.name} {layer.ratio:g}" for layer in layers)
        raise SolverError(f"{config.where}: the rows of these layers go together (coupled_rows: TOGETHER) and need one "
                          f"prune_ratio, but have: {shown}")
    for layer in layers:
        if given:
            layer.ratio, layer.explicit = _f(given.copy().pop()), True
    return None


def _skip(layer: LayerState, why: str, config: PruneConfig) -> None:
    if layer.ratio > 0 or (config.target is not None and not layer.explicit):
        layer.note = why
    layer.ratio, layer.explicit = _f(0), True


def _agree(tie: Tie) -> None:
    """What a target gave to some layers of a tie is the ratio of all of them."""
    least = min(layer.ratio for layer in tie)
    for layer in tie:
        layer.ratio = least


# -- a target for the net ---------------------------------------------------------------------------------------------

def target_of(config: PruneConfig) -> tuple[str, float]:
    """What prune_target asks for: the name of a number of `Budget`, and its value."""
    wanted = [(name, getattr(config.target, name)) for name in ("speedup", "compression") if config.target.HasField(name)]
    if len(wanted) != 1 or wanted[0][1] <= 1:
        raise SolverError(f"{config.where}: prune_target asks for {', '.join(f'{n}: {v:g}' for n, v in wanted) or 'nothing'}; "
                          "expected either speedup or compression, and more than 1")
    return wanted[0]


def meet(layers: Sequence[LayerState], config: PruneConfig, coupling: Coupling, ties: Sequence[Tie],
         orders: Orders | None = None) -> None:
    """Gives all layers without a ratio the least one that meets prune_target, if groups go in these `orders` (see
    `foresee`). Raises `SolverError` if none does."""
    orders = orders or _random_orders(layers, config, ties)
    name, value = target_of(config)
    target = config.target
    free = [layer for layer in layers if not layer.explicit and config.unit.refusal(layer.layout) is None
            and (layer.is_conv or target.prune_fc)]
    if isinstance(config.unit, Row):
        whole = {layer.name for layer in needed_rows(layers, coupling)}
        free = [layer for layer in free if layer.name not in whole]

    def reached(step: int) -> float:
        for layer in free:
            layer.ratio = _uniform(layer, config, step)
        for tie in ties:
            _agree(tie)
        return getattr(foresee(layers, config, coupling, ties, orders)[1], name)

    if not free:
        raise SolverError(f"{config.where}: prune_target {name}: {value:g} finds no layer without a prune_ratio to give one to")
    most = reached(STEPS - 1)
    if most < value:
        raise SolverError(f"{config.where}: prune_target {name}: {value:g} cannot be met by {config.name}: at most {most:.4g} "
                          f"is possible with {len(free)} layers to prune, of which each keeps {config.least_groups} "
                          f"{config.unit.plural} at least")
    reached(least_enough(lambda step: reached(step) >= value, STEPS - 1))


def _uniform(layer: LayerState, config: PruneConfig, step: int) -> np.float32:
    """The ratio step / STEPS, or what leaves least_groups."""
    groups = config.unit.size(layer.layout)
    most = floor(STEPS * max(0, groups - config.least_groups) / groups)
    return _f(min(step, most) / STEPS)


def least_enough(enough: Callable[[int], bool], most: int) -> int:
    """The least number in 1..most that is `enough`; `most` if none is."""
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def groups_to_prune(layer: LayerState, config: PruneConfig) -> int:
    """How many of a layer's groups are to be pruned, so that some are left."""
    groups = config.unit.size(layer.layout)
    return max(0, min(config.method.count(groups, layer.ratio, config.settings), groups - config.least_groups))


def foresee(layers: Sequence[LayerState], config: PruneConfig, coupling: Coupling, ties: Sequence[Tie],
            orders: Orders | None = None) -> tuple[list[LayerState], Budget]:
    """The layers and the budget once all is pruned, neighbours that follow included; compression counts all weights.

    Which groups go is known for sure only then. `orders` are those in which they are likely to go, by the names of the
    layers with a ratio; any, without them, but the same ones where rows go together.
    """
    orders = orders or _random_orders(layers, config, ties)
    after = [replace(layer, masks=Masks(layer.layout, layer.masks.rows.device)) for layer in layers]
    for layer in after:
        if layer.ratio == 0 or isinstance(config.unit, Weight):
            continue
        order = orders[layer.name]
        chosen = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        config.unit.prune(layer.masks, chosen.index_fill_(0, order[:groups_to_prune(layer, config)], True))
    return after, budget_left(after, config, coupling)


def _random_orders(layers: Sequence[LayerState], config: PruneConfig, ties: Sequence[Tie]) -> Orders:
    """Any order for each layer, the same one for those of a tie."""
    if isinstance(config.unit, Weight):
        return {}
    generator = torch.Generator().manual_seed(0)
    orders = {layer.name: torch.randperm(config.unit.size(layer.layout), generator=generator).to(layer.masks.rows.device)
              for layer in layers}
    return orders | {layer.name: orders[tie[0].name] for tie in ties for layer in tie}


def foresee_rows(layers: Sequence[LayerState], rows: Mapping[str, torch.Tensor], config: PruneConfig,
                 coupling: Coupling) -> Budget:
    """The budget once more `rows` are pruned, bool vectors by the names of their layers."""
    after = [replace(layer, masks=Masks(layer.layout, layer.masks.rows.device)) for layer in layers]
    for layer, now in zip(after, layers):
        more = rows.get(layer.name)
        layer.masks.set(now.masks.rows if more is None else now.masks.rows | more, now.masks.columns)
    return budget_left(after, config, coupling)


def budget_left(after: Sequence[LayerState], config: PruneConfig, coupling: Coupling) -> Budget:
    """Lets neighbours follow in copies of the layers, where more is pruned, and counts what is left."""
    if config.update_row_col:
        by_rows = isinstance(config.unit, Row)
        for index, groups in (coupling.idle_columns if by_rows else coupling.idle_rows)(after).items():
            if after[index].update:
                (after[index].masks.add_columns if by_rows else after[index].masks.add_rows)(groups)
    for layer in after:
        layer.take_counts()
        layer.update_ratios()
        if isinstance(config.unit, Weight):
            layer.pruned_ratio = _f(groups_to_prune(layer, config) / config.unit.size(layer.layout))
    return measure(after, speedup_counts_fc=config.speedup_counts_fc, compression_counts_conv=True)


# -- checks -----------------------------------------------------------------------------------------------------------

def _check(layer: LayerState, config: PruneConfig) -> None:
    """Raises `SolverError` if a layer cannot be pruned as it is to be."""
    refusal = config.unit.refusal(layer.layout)
    if refusal:
        raise SolverError(f"{layer.where}: {config.name} cannot prune this layer: {refusal}; set its prune_ratio to 0")
    groups = config.unit.size(layer.layout)
    left = groups - config.method.count(groups, layer.ratio, config.settings)
    if groups <= config.least_groups or (left < config.least_groups and not config.method.leaves_some):
        raise SolverError(f"{layer.where}: {config.name} prunes groups of which this layer has {groups}, and "
                          f"prune_ratio {layer.ratio:g} would leave {'none' if left <= 0 else left}; set it lower, or to 0")
    if config.staged and not layer.ratio_step > 0:
        raise SolverError(f"{layer.where}: prune_ratio_step is {layer.ratio_step:g}, but with acc_borderline "
                          f"{config.acc_borderline:g} pruning goes on in stages; set it to the share that a stage may prune")
