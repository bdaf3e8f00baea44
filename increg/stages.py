"""The schedule: prune -> losseval -> retrain -> (prune | final_retrain | done), as an explicit state machine.

`Stages` decides; a `Trainer` does what it asks for, so the whole schedule runs without a net if accuracies are fed to it.
All lines go to standard output in the reference's words, which its log parsers look for. Numbers are float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from caffe_compat.errors import WeightError

from .aims import FIRST_INCREASE, LEAST_INCREASE, ceiling, first_ratio, increase_for, next_ratio
from .budget import Budget
from .config import PruneConfig
from .stage_state import Best, StageState
from .state import LayerState
from .trainer import Trainer, say

_f = np.float32
#: An accuracy is bad if it is below the borderline by more than this.
ACCURACY_GAP = _f(5e-4)
#: Tests after the best one that end a period; how many more without a borderline, in final_retrain, in a first period.
PATIENCE, UNBOUNDED_PATIENCE, FINAL_PATIENCE, FIRST_PATIENCE = 4, 2, 4, 2
#: After a period the rate is multiplied by this, this many times and once more; retraining ends below the least rate.
RATE_DECAY, MAX_DECAYS, LEAST_RATE = _f(0.1), 4, 1e-6


class Stages:
    """Runs the schedule over `layers`. Call `check_layer` for every layer before an iteration's forward pass, and
    `after_update` after its update."""

    def __init__(self, config: PruneConfig, layers: Sequence[LayerState], trainer: Trainer,
                 say: Callable[[str], None] = say) -> None:
        self.config = config
        self.layers = layers
        self.trainer = trainer
        self.say = say
        self.now = self._first()
        self.take_ratios()

    def take_ratios(self) -> None:
        """Sets what the first stage aims at, from the ratios of the layers."""
        for layer in self.layers:
            layer.ratio_now = first_ratio(self.config, layer)

    def _first(self) -> StageState:
        return StageState(feasible_accuracy=self.config.baseline_acc,
                          ceiling=float(ceiling(self.config.target_reg, FIRST_INCREASE)))

    # -- before an iteration --------------------------------------------------------------------------------------------

    def check_layer(self, layer: LayerState, step: int) -> None:
        """Marks a layer as finished once it reaches its aim, or the whole net its own; `step` is the iteration, from 1."""
        now = self.now
        if layer.finished is not None:
            return
        by_itself = self.config.method.reached(layer, self.config.by_rows)
        if not (by_itself or now.speedup_reached):
            return
        layer.finished = step - 1
        self.say(f"{layer.name} prune finished!  step: {step}  net speedup: {self.config.speedup:g}  "
                 f"net compRatio: {self.config.compression:g}  pruned_ratio: {layer.pruned_ratio:6.4f}  "
                 f"pruned_ratio_row: {layer.pruned_ratio_row:6.4f}  pruned_ratio_col: {layer.pruned_ratio_column:6.4f}  "
                 f"current prune_ratio: {layer.ratio_now:g}")
        if all(other.finished is not None for other in self.layers):
            now.reached = True
            if now.state == "prune" or self.config.as_reference:
                now.finished_iter = step - 1  # in the reference also when a snapshot of a later state is loaded

    def update_budget(self) -> Budget:
        """Checks the net's own aims, speedup and compRatio, against the pruned ratios."""
        budget = self.trainer.budget()
        self.now.speedup_reached = budget.speedup >= self.config.speedup
        return budget

    # -- after an update ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Before the first iteration: a snapshot of what pruning starts from, and the first stage."""
        budget = self.trainer.budget()
        self._app(f"Training starts, iter: {self.trainer.iter}{_clock()}, speedup: {budget.speedup:g}, "
                  f"compRatio: {budget.compression:g}")
        if self.trainer.iter == 0:
            self.trainer.snapshot("_stage0")
            self.now.stage = 1

    def after_update(self) -> None:
        """Moves on to the next state when it is time to."""
        now, config, iteration = self.now, self.config, self.trainer.iter
        if now.state == "prune" and now.reached:
            self._end_pruning()
        if now.state == "losseval" and iteration - now.finished_iter == config.losseval_interval:
            self._app("   'losseval' done, retrain to check accuracy before starting a new pruning stage. "
                      f"iter: {iteration}{_clock()}")
            self._enter("retrain")
        if not config.retrain_test_interval or iteration % config.retrain_test_interval:
            return
        if now.state == "retrain":
            self._test(PATIENCE + (0 if config.staged else UNBOUNDED_PATIENCE))
        elif now.state == "final_retrain" and now.state_iter != iteration:
            self._test(PATIENCE + FINAL_PATIENCE)

    def _enter(self, state: str) -> None:
        now = self.now
        now.state = state
        self._set_passes()
        if state == "prune":
            self._unfinish()
        elif state == "retrain":
            if not now.rate and self.config.retrain_test_interval:  # lr_policy was followed until now
                self._set_rate(_f(self.trainer.rate))
            now.state_rate = now.rate
        elif state == "final_retrain":
            now.state_iter = self.trainer.iter
            self._set_rate(_f(now.retrain_rate))

    def load_fields(self, message: Any, where: str | None) -> None:
        """Takes over what a SolverState that the reference wrote tells of the schedule."""
        if message.prune_state not in self.config.passes:
            raise WeightError(f'{where}: prune_state is "{message.prune_state}", expected one of '
                              f"{', '.join(self.config.passes)}")
        self.now = replace(self._first(), state=message.prune_state, stage=message.prune_stage,
                           finished_iter=message.stage_iter_prune_finished, feasible_iter=message.last_feasible_prune_iter)

    def resume(self, exactly: bool) -> None:
        """After `now` was loaded from a snapshot. One that the reference wrote does not tell (`exactly`) which layers were
        finished, nor the learning rate, which is lr_policy's again."""
        self._set_rate(_f(self.now.rate))
        self._set_passes()
        if self.now.state == "prune" and not exactly:
            self._unfinish()

    def _set_passes(self) -> None:
        state = self.now.state
        self.trainer.set_passes(self.config.passes[state if self.config.staged or state == "prune" else "final_retrain"])

    def _unfinish(self) -> None:
        self.now.reached = False
        for layer in self._pruned():
            layer.finished = None

    def _end_pruning(self) -> None:
        now = self.now
        budget = self.update_budget()
        self._app("")
        self._app(f"Current pruning stage (stage = {now.stage}) finished. Go on training for a little while before checking "
                  f"accuracy. speedup: {budget.speedup:g}, iter: {now.finished_iter}{_clock()}")
        for layer in self._pruned():
            ratio = layer.pruned_ratio if layer.settled else layer.pruned_ratio_column  # the latter in the reference
            self._app(f"   {layer.index} - pruned_ratio: {ratio:g}")
        self._enter("losseval")
        for layer in self._pruned():
            left = self.trainer.clear_left_over(layer, _f(now.ceiling))
            if left:
                self._app(f"   {layer.index} - {len(left)} columns' left reg not cleared, now cleared:"
                          + "".join(f" {value:g}" for value in left))

    # -- retraining -----------------------------------------------------------------------------------------------------

    def _test(self, patience: int) -> None:
        """Tests, keeps the best, and ends a rate period that has not got better for more than `patience` tests."""
        now, iteration = self.now, self.trainer.iter
        infix = f"_stage{now.stage}-retrain" if now.state == "retrain" else "_finalretrain"
        self.trainer.snapshot(infix)
        scores = self.trainer.accuracies()
        if scores is None:
            return
        accuracy = min(scores) if self.config.use_acc1 else max(scores)
        now.accuracies.append(float(accuracy))
        now.period_tests += 1
        now.period.take(accuracy, iteration, now.period_tests)
        now.best.take(accuracy, iteration, len(now.accuracies))
        self._app(f"   '{now.state}' going on, current acc = {accuracy:f}, iter: {iteration}{_clock()}")
        if now.decays == 0 and now.state == "retrain":
            patience += FIRST_PATIENCE
        if now.period_tests - now.period.tests <= patience:
            return
        self._end_period(infix)
        now.period, now.period_tests = Best(), 0

    def _end_period(self, infix: str) -> None:
        """Lowers the rate and goes back to the best of the period; ends retraining when lower rates do not help."""
        now = self.now
        now.first_iter = now.first_iter or now.period.iter
        self._set_rate(_f(now.rate) * RATE_DECAY)
        now.decays += 1
        self._app(f"   '{now.state}' of current lr period finished, final acc = {now.period.accuracy:f}, "
                  f"iter = {now.period.iter}, decay lr (new: {now.rate:.7f}){_clock()}")
        self.trainer.restore(infix, now.period.iter)
        if now.state == "final_retrain":
            self._finish()
        elif now.decays > MAX_DECAYS or now.period.accuracy < now.best.accuracy or now.rate < LEAST_RATE:
            self._end_retraining(infix)

    def _end_retraining(self, infix: str) -> None:
        now, best = self.now, self.now.best
        now.retrain_rate = float(_f(now.rate) / RATE_DECAY)  # the lowered rate was not used
        self._app("   All 'retrain' done: lr has decayed enough OR max acc of this lr period is not better than the previous "
                  f"one. Output the best caffemodel, iter = {best.iter}, acc = {_f(best.accuracy):g}. "
                  f"Resuming from iter = {now.first_iter}")
        self.trainer.restore(infix, now.first_iter)
        self._set_rate(_f(now.state_rate))
        highest = sorted((_f(value) for value in now.accuracies), reverse=True)[:3]
        now.first_iter, now.decays = 0, 0
        self._judge(_f(highest[0] + highest[1] + highest[2]) / _f(3), best)
        if not self.config.staged and not now.done:
            self._app("   'Given pr to get acc' task done!")
            if now.state != "final_retrain":
                self.trainer.restore(infix, best.iter)
            self._stop()
        now.best, now.accuracies = Best(), []

    def _judge(self, accuracy: np.float32, best: Best) -> None:
        """Good: keep what was reached and aim higher. Bad: go back to the last good stage and aim lower."""
        now, borderline = self.now, _f(self.config.acc_borderline)
        if borderline - accuracy > ACCURACY_GAP:
            self._roll_back(accuracy)
        else:
            now.feasible_iter, now.feasible_accuracy, now.feasible_best = self.trainer.iter, float(accuracy), best
            for layer in self._pruned():
                layer.last_feasible = layer.compared_ratio(self.config.by_rows)
            self._app("   accuracy **still good**, save caffemodel, start a new pruning stage.")
            self._aim(increase_for(accuracy - borderline))
            self._enter("prune")
            self.trainer.snapshot(f"_stage{now.stage}")
            now.stage += 1
        if not self.config.as_reference:
            self.update_budget()  # after a roll-back, the speedup that the bad stage had reached no longer counts
        self._check_final_aim()

    def _roll_back(self, accuracy: np.float32) -> None:
        now = self.now
        for layer in self._pruned():
            layer.last_infeasible = layer.compared_ratio(self.config.by_rows)
        self._app(f"   accuracy **bad**, going to roll back weights to iter = {now.feasible_iter} "
                  f"(stage = {now.stage - 1}). Reassign the incre_pr:")
        now.total_increase = float(_f(now.total_increase) - _f(now.increase))
        feasible = _f(now.feasible_accuracy)
        increase = _f(now.increase) / (feasible - accuracy) * (feasible - _f(self.config.acc_borderline))
        self._aim(increase)
        self._resume(f"_stage{now.stage - 1}", now.feasible_iter)
        self._enter("prune")
        if increase < LEAST_INCREASE:
            self._app("")
            self._app(f"Stop: incre_pr is too small (<{LEAST_INCREASE:g}), so another pruning stage is meaningless. "
                      "Go to 'final_retrain'.")
            self._retrain_finally()

    def _aim(self, increase: np.float32) -> None:
        """Sets the aims of the next stage, from the ratios that the last good one reached."""
        now = self.now
        now.increase = float(increase)
        now.total_increase = float(_f(now.total_increase) + increase)
        now.ceiling = float(ceiling(self.config.target_reg, increase))
        self._app(f"   incre_pr: {increase:g} (now ave_pr = {now.total_increase:g}, target_reg = {now.ceiling:g})")
        for layer in self._pruned():
            before = layer.last_feasible
            layer.ratio_now = next_ratio(layer, increase)
            layer.finished = None
            self._app(f"   {layer.index} - current_prune_ratio: {before:g} -> {layer.ratio_now:g} "
                      f"(+{layer.ratio_now - before:g})")

    # -- the end --------------------------------------------------------------------------------------------------------

    def _check_final_aim(self) -> None:
        now = self.now
        ratios_reached = all(layer.settled or layer.compared_ratio(self.config.by_rows) >= layer.ratio for layer in self.layers)
        if not (ratios_reached or now.speedup_reached):
            return
        self._app("")
        line = f"All layer prune finished: iter = {self.trainer.iter}"
        if self.config.early_stop:
            self._app(f"{line} - early stopped.")
            self.trainer.report_layers()
            self._stop()
        else:
            self._app(f"{line} - Go to 'final_retrain'.")
            self._retrain_finally()

    def _retrain_finally(self) -> None:
        """From the best of the last good stage; from where pruning began if there was none."""
        now = self.now
        if now.feasible_best.iter:
            self._resume(f"_stage{now.stage - 1}-retrain", now.feasible_best.iter)
        self._enter("final_retrain")

    def _finish(self) -> None:
        """The output is the better of final_retrain's best and the last good stage's, the latter on a tie."""
        now, best, feasible = self.now, self.now.best, self.now.feasible_best
        output = best if best.accuracy > feasible.accuracy else feasible
        self._app(f"   All '{now.state}' done. Output the best caffemodel, iter = {best.iter}, acc = {best.accuracy:f}")
        self._app(f"   All prune done. Output the best caffemodel, iter = {output.iter}, acc = {output.accuracy:f}")
        self.trainer.report_layers()
        if output is feasible:
            self.trainer.restore(f"_stage{now.stage - 1}-retrain", feasible.iter)
        self._stop()

    # -- helpers --------------------------------------------------------------------------------------------------------

    def _resume(self, infix: str, iteration: int) -> None:
        path = self.trainer.restore(infix, iteration)
        self._app(f"   ===== resuming from: {path}")

    def _stop(self) -> None:
        self.now.done = True
        self.trainer.stop()

    def _set_rate(self, rate: np.float32) -> None:
        self.now.rate = float(rate)
        self.trainer.set_rate(rate)

    def _pruned(self) -> list[LayerState]:
        return [layer for layer in self.layers if layer.prunes]

    def _app(self, line: str) -> None:
        self.say(f"[app] {line}".rstrip())


def _clock() -> str:
    return time.strftime(" (%Y/%m/%d-%H:%M)")
