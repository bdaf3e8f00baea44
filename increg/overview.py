"""What was understood of the settings, as a table to read before training: each layer, its ratio, and what that leaves."""

from __future__ import annotations

from .pruner import Pruner
from .ratios import foresee, groups_to_prune

HEAD = ("layer", "groups", "prune_ratio", "to prune", "multiply-adds", "left", "weights", "left", "")


def lines(pruner: Pruner) -> list[str]:
    """The table's lines. What is left counts neighbours that follow; where the method chooses the ratios itself, it is
    what the ratios it begins with would leave."""
    config, unit = pruner.config, pruner.unit
    after, budget = foresee(pruner.layers, config, pruner.coupling, pruner.ties, pruner.orders())
    rows = [HEAD]
    for layer, then in zip(pruner.layers, after):
        weights = layer.layout.rows * layer.layout.columns
        operations = weights * layer.outputs
        kept = 1 - float(then.pruned_ratio)
        note = layer.note or ("" if layer.prunes or then.pruned_ratio == 0 else "follows its neighbours")
        rows.append((layer.name, f"{unit.size(layer.layout)}" if layer.prunes else "-",
                     f"{layer.ratio:g}", f"{groups_to_prune(layer, config)}" if layer.prunes else "-",
                     f"{operations:,}", f"{operations * kept:,.0f}", f"{weights:,}", f"{weights * kept:,.0f}", note))
    widths = [max(len(row[k]) for row in rows) for k in range(len(HEAD) - 1)]
    text = [f"Pruning by {config.name}: groups are {unit.plural}" + _how(pruner)]
    text += [("  " + "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:])),
                                row[-1]])).rstrip() for row in rows]
    begins = ", to begin with" if pruner.method.chooses_ratios else ""
    text.append(f"  in all: {budget.speedup:.4g}x fewer multiply-adds ({_counted(config.speedup_counts_fc)}), "
                f"{budget.compression:.4g}x fewer weights (all layers){begins}")
    return text


def _counted(fc: bool) -> str:
    return "Convolution and InnerProduct layers" if fc else "Convolution layers"


def _how(pruner: Pruner) -> str:
    if pruner.unit.plural != "rows":
        return ""
    words = {"ALONE": "each layer chooses its own", "SKIP": "those that meet other layers' stay",
             "TOGETHER": "those that meet go together"}
    return f"; coupled_rows: {pruner.config.coupled}, {words[pruner.config.coupled]}"
