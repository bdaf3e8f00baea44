"""What came of a pruning run, in numbers and as a table to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .budget import Budget, measure
from .state import LayerState


@dataclass(frozen=True)
class Outcome:
    """A run's result. `budget` counts the convolutions' multiply-adds for one image, and their weights."""

    accuracy_before: float
    accuracy_after: float
    budget: Budget
    layers: list[dict[str, Any]]

    @classmethod
    def of(cls, layers: Sequence[LayerState], accuracy_before: float, accuracy_after: float) -> Outcome:
        """The outcome for a pruned net's layers, as they are now."""
        convolutions = [layer for layer in layers if layer.is_conv]
        return cls(accuracy_before, accuracy_after, measure(convolutions, compression_counts_conv=True), [
            {"name": layer.name, "rows": layer.layout.rows, "columns": layer.layout.columns,
             "rows_pruned": layer.num_rows, "columns_pruned": layer.num_columns,
             "pruned_ratio": float(layer.pruned_ratio)}
            for layer in layers if layer.prunes or layer.pruned_ratio > 0])

    def to_json(self) -> dict[str, Any]:
        """Plain values, the two ratios among them."""
        return {**asdict(self), "speedup": self.budget.speedup, "compression": self.budget.compression}

    def table(self) -> str:
        """Before and after, and layer by layer."""
        budget = self.budget
        lines = [
            f"{'':20}{'before':>16}{'after':>16}",
            f"{'test accuracy':20}{100 * self.accuracy_before:>14.2f} %{100 * self.accuracy_after:>14.2f} %",
            f"{'conv multiply-adds':20}{budget.operations:>16,}{budget.operations_left:>16,.0f}"
            f"   {budget.speedup:.3f}x fewer",
            f"{'conv weights':20}{budget.weights:>16,}{budget.weights_left:>16,.0f}   {budget.compression:.3f}x fewer",
            "",
            f"{'layer':20}{'columns pruned':>20}{'rows pruned':>16}{'weights pruned':>18}",
        ]
        for layer in self.layers:
            columns = f"{layer['columns_pruned']:g} of {layer['columns']}"
            rows = f"{layer['rows_pruned']} of {layer['rows']}"
            lines.append(f"{layer['name']:20}{columns:>20}{rows:>16}{100 * layer['pruned_ratio']:>16.1f} %")
        return "\n".join(lines)


def comparison(lines: Sequence[Mapping[str, str]]) -> str:
    """Published and measured numbers, one line each: what, before, speedup, after, source."""
    heading = {"what": "", "before": "accuracy before", "speedup": "speedup", "after": "accuracy after", "source": "source"}
    widths = {key: max(len(line[key]) for line in [heading, *lines]) for key in heading}
    return "\n".join(
        f"{line['what']:{widths['what']}}  {line['before']:>{widths['before']}}  {line['speedup']:>{widths['speedup']}}  "
        f"{line['after']:>{widths['after']}}  {line['source']}" for line in [heading, *lines])
