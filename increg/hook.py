"""`PruneHook`: connects a solver with a `Pruner` and the schedule. Glue: no arithmetic, no decisions."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_compat.errors import SolverError, WeightError
from caffe_compat.layers.base import Layer
from caffe_compat.proto import Document
from caffe_compat.solver.hooks import SolverHook
from caffe_compat.solver.solver import Solver

from . import coupling, overview, ratios, state
from .accuracy import accuracy_outputs
from .budget import Budget
from .config import PruneConfig
from .prunable import find_layers
from .pruner import Pruner
from .stage_state import StageState
from .stages import Stages
from .state import LayerState
from .trainer import say


class PruneHook(SolverHook):
    """Prunes while `solver` trains. `layers` is what it knows of each layer, `stages.now` of the schedule.

    In an iteration, in the order of the solver's events: masks on weights, masks on diffs, punishment (after weight
    decay, before momentum), schedule. The method has its say at each of them while the schedule is in its state `prune`.
    """

    name = "increg"

    def __init__(self, solver: Solver, config: PruneConfig) -> None:
        self.solver = solver
        self.config = config
        self.layers: list[LayerState] = find_layers(solver.net, solver.param.weight_decay)
        links = (coupling.as_reference(self.layers, solver.device) if config.as_reference
                 else coupling.from_net(solver.net, self.layers, solver.device))
        ties = ratios.settle(self.layers, config, links)
        self.pruner = Pruner(self.layers, config, links, solver.device, solver.net, ties)
        self.method = self.pruner.method
        self.stages = Stages(config, self.layers, self)
        self._check_tests()
        self._loaded = ""
        self._marks: dict[str, Tensor] = {}
        self._last_snapshot = ""
        self._stale_budget = False
        self._begun = False
        solver.set_pass_multiplier(config.passes["prune"])

    def _check_tests(self) -> None:
        nets = self.solver.test_nets
        chosen, interval = self.config.accuracy_output, self.config.retrain_test_interval
        if not (interval or chosen) or (nets and accuracy_outputs(nets[-1].outputs, chosen)):
            return
        missing = f'output "{chosen}" (accuracy_output)' if chosen else 'output with "ccuracy" in its name'
        raise SolverError(f"{self.config.where}: {f'retrain_test_interval is {interval}, but ' if interval else ''}the last "
                          f"test net has no {missing}, by which retraining is judged; its outputs: "
                          f"{', '.join(nets[-1].outputs) if nets else 'there is no test net'}"
                          f"{'' if chosen else '. Name the one of which more is better: accuracy_output'}")

    # -- the solver's events --------------------------------------------------------------------------------------------

    def on_train_begin(self, solver: Solver) -> None:
        """Says what was understood, and snapshots what pruning starts from."""
        for layer in self.layers:
            layer.update_ratios()
        if solver.iter == 0:
            self._meet_target()
        for line in overview.lines(self.pruner):
            say(line)
        self.stages.begin()
        self._begin_method()
        self._hold_method_rate()

    @torch.no_grad()
    def _meet_target(self) -> None:
        """Takes the ratios from prune_target again, now that weights tell what is likely to go, and what follows it."""
        if self.config.target is not None and not self.method.chooses_ratios:
            ratios.meet(self.layers, self.config, self.pruner.coupling, self.pruner.ties, self.pruner.orders())
            self.stages.take_ratios()

    def _begin_method(self) -> None:
        if self._pruning and not self._begun:
            self._begun = True
            with torch.no_grad():
                self.method.begin()

    def on_start(self, solver: Solver) -> None:
        """Neighbours follow, finished layers are found, weights are masked."""
        self._begin_method()
        if self._pruning:
            with torch.no_grad():
                self.method.before_forward(solver.iter)
        solver.set_weight_decay(self.method.weight_decay if self._pruning else None)
        self._take_stock()
        self.pruner.mask_weights()

    def _take_stock(self) -> None:
        step = self.solver.iter + 1
        if self.pruner.take_stock(self._pruning, lambda layer: self.stages.check_layer(layer, step)):
            self._stale_budget = True

    def on_gradients_ready(self, solver: Solver) -> None:
        """Diffs are masked."""
        if self._pruning:
            with torch.no_grad():
                self.method.gradients_ready(solver.iter)
        self.pruner.mask_diffs()

    def on_regularize(self, solver: Solver) -> None:
        """Groups are punished and pruned, momentum is masked."""
        self.pruner.regularize(solver.iter, self.stages.now.ceiling, solver.history, self._pruning)

    def on_updated(self, solver: Solver) -> None:
        """The schedule moves on; the learning rate of the first update is held by some methods."""
        now = self.stages.now
        if not now.rate and self.method.holds_rate:
            self.set_rate(np.float32(solver.rate))
            now.rate = solver.rate
        before = now.state, now.stage
        if self._pruning:
            with torch.no_grad():
                self.method.updated(solver.iter)
            if self.pruner.settled:
                self._take_stock()
        self.stages.after_update()
        if before[0] == "prune" != now.state:
            self._leave_pruning()
        if self._stale_budget:
            self.stages.update_budget()
            self._stale_budget = False
        if (now.state, now.stage) != before:
            self.pruner.changed = True

    @property
    def _pruning(self) -> bool:
        """Whether the method has its say."""
        return self.stages.now.state == "prune" and not self.pruner.settled

    def _hold_method_rate(self) -> None:
        if self.stages.now.state == "prune" and self.method.rate is not None:
            self.set_rate(np.float32(self.method.rate))

    def _leave_pruning(self) -> None:
        if self.method.rate is not None:
            self.set_rate(np.float32(self.stages.now.rate))
        if self.method.fresh_momentum:
            for history in self.solver.history:
                torch._foreach_zero_(history)

    def on_snapshot(self, solver: Solver) -> None:
        """Of the regular snapshots only the newest is kept."""
        stem = f"{solver.param.snapshot_prefix}_iter_{solver.iter}"
        if self._last_snapshot not in ("", stem):
            for ending in (".caffemodel", ".solverstate"):
                with suppress(FileNotFoundError):
                    os.unlink(self._last_snapshot + ending)
        self._last_snapshot = stem

    def on_train_end(self, solver: Solver) -> None:
        """Prints what is pruned."""
        if not self.stages.now.done:
            self.report_layers()

    # -- snapshots ------------------------------------------------------------------------------------------------------

    def save_state(self, solver: Solver, document: Document, extra: dict[str, bytes]) -> None:
        """The fork's fields, and in `extra` what it has none for."""
        now, message = self.stages.now, document.message
        message.prune_state, message.prune_stage = now.state, now.stage
        message.stage_iter_prune_finished, message.last_feasible_prune_iter = now.finished_iter, now.feasible_iter
        state.write_ratios(document, self.layers)
        self.method.write_fields(document, solver.learnable)
        extra[self.name] = json.dumps({
            "method": self.config.name, "begun": self._begun, "stages": now.to_json(),
            "layers": {layer.name: state.to_extra(layer) for layer in self.layers}}).encode()
        if values := self.method.state():
            extra[f"{self.name}.method"] = state.pack_values(values)

    def load_state(self, solver: Solver, document: Document, extra: dict[str, bytes]) -> None:
        """Takes everything back; in a roll-back (`restore`) only what belongs to the weights, not the schedule."""
        own = json.loads(extra[self.name]) if self.name in extra else None
        self._check_origin(document, own)
        marks = self.method.read_fields(document, len(solver.learnable))
        if marks is None and own is None:
            raise WeightError(f"{document.path}: tells nothing of {self.config.name}, by which this solver prunes. A state "
                              "that was not written while pruning so cannot be resumed; start from its .caffemodel instead "
                              "(--weights)")
        state.check_ratios(document, self.layers)
        self._marks = marks or {}
        exact = own and not (self._loaded == "roll back" and self.config.as_reference)
        if exact:
            for layer in self.layers:
                state.masks_from_extra(layer, own["layers"][layer.name])
        if self._loaded == "roll back":
            self._loaded = "roll back exactly" if exact else "roll back"
            return
        self._loaded = "exactly" if exact else "fields"
        state.read_ratios(document, self.layers)
        if own:
            self._begun = own.get("begun", True)
            self.stages.now = StageState.from_json(own["stages"])
            for layer in self.layers:
                kept = own["layers"][layer.name]
                layer.finished, layer.settled = kept["finished"], kept.get("settled", False)
                if not layer.explicit:
                    layer.ratio = np.float32(kept.get("ratio", layer.ratio))
            self.method.load_state(state.unpack_values(extra[f"{self.name}.method"]) if f"{self.name}.method" in extra else {})
        else:
            self.stages.load_fields(document.message, document.path)

    def _check_origin(self, document: Document, own: dict[str, Any] | None) -> None:
        before = (own or {}).get("method", self.config.name)
        if before != self.config.name:
            raise WeightError(f"{document.path}: was written while pruning by {before}, and this solver prunes by "
                              f"{self.config.name}; start from its .caffemodel instead (--weights)")

    @torch.no_grad()
    def on_weights_loaded(self, solver: Solver) -> None:
        """Works out what is pruned from the weights, unless a snapshot of ours has told it."""
        how, self._loaded = self._loaded, ""
        for layer in self.layers:
            if not how.endswith("exactly") and self.method.zeros_are_pruned:
                state.restore_masks(layer, self.pruner.unit, self._marks.get(layer.name))
            if not how and layer.masks.num_rows == layer.layout.rows and not self.config.as_reference:
                raise WeightError(f"{layer.where}: all of its weights are zero, as if everything were pruned. Load trained "
                                  "weights that this layer is in, or give it a weight_filler")
            layer.update_ratios()
            if how != "exactly":
                self.stages.check_layer(layer, solver.iter + 1)
        self._marks = {}
        if how in ("fields", "exactly"):
            self.stages.resume(exactly=how == "exactly")
            self._hold_method_rate()
        if how in ("fields", ""):
            self.stages.update_budget()
        self._stale_budget = how.startswith("roll back")
        self.pruner.start_over()

    # -- what the schedule acts through ---------------------------------------------------------------------------------

    @property
    def iter(self) -> int:
        """The number of the iteration, from 0."""
        return self.solver.iter

    @property
    def rate(self) -> float:
        """The learning rate that lr_policy gives."""
        return float(self.solver.learning_rate())

    def accuracies(self) -> list[np.float32] | None:
        """The accuracies of the last test net."""
        results = self.solver.test_all()
        if self.solver.stopped or not results:
            return None
        chosen = accuracy_outputs((name for name, _ in results[-1].scores), self.config.accuracy_output)
        return [np.float32(value) for name, value in results[-1].scores if name in chosen]

    def snapshot(self, infix: str) -> None:
        """Writes `<snapshot_prefix><infix>_iter_<iter>`."""
        self.solver.snapshot(infix)

    def restore(self, infix: str, iteration: int) -> str:
        """Goes back to such a snapshot; the schedule stays where it is."""
        path = f"{self.solver.param.snapshot_prefix}{infix}_iter_{iteration}.solverstate"
        positions = self._positions() if self.config.as_reference else []
        self._loaded = "roll back"
        try:
            self.solver.restore(path)
        finally:
            self._loaded = ""
        for layer, position in positions:
            layer.load_state(position)
        return path

    def _positions(self) -> list[tuple[Layer, dict[str, Any]]]:
        """Where the data are: the reference reads on from there, whatever it goes back to."""
        layers = [layer for net in (self.solver.net, *self.solver.test_nets) for layer in net.layers]
        return [(layer, state) for layer in layers if (state := layer.state()) is not None]

    def set_rate(self, rate: np.float32) -> None:
        """Holds the learning rate; 0 gives it back to lr_policy."""
        self.solver.set_rate(float(rate) or None)

    def set_passes(self, passes: int) -> None:
        """Passes an iteration, times iter_size, from the next one on."""
        self.solver.set_pass_multiplier(passes)

    def clear_left_over(self, layer: LayerState, ceiling: np.float32) -> list[float]:
        """See `Pruner.clear_left_over`."""
        return self.pruner.clear_left_over(layer, float(ceiling))

    def numbers(self, layer: LayerState) -> dict[str, Tensor]:
        """See `PruneMethod.numbers`."""
        return self.method.numbers(layer)

    def budget(self) -> Budget:
        """See `Pruner.budget`."""
        return self.pruner.budget()

    def report_layers(self) -> None:
        """The reference's table of what is pruned."""
        say("[app]\n[app] Print final pruned ratio of all layers:")
        for layer in self.layers:
            rows, columns, layout = int(layer.num_rows), int(layer.num_columns), layer.layout
            shape = state.format_shape(layout.shape)
            say(f"[app]    {layer.name}, shape = {shape} | num_col = {layout.columns}, num_pruned_col = {columns} "
                f"({columns / layout.columns:f}) | num_row = {layout.rows}, num_pruned_row = {rows} ({rows / layout.rows:f})"
                + (f" | num_pruned_weight = {layer.masks.num_weights}" if layer.masks.weights is not None else ""))

    def stop(self) -> None:
        """Ends training."""
        self.solver.stop()
