"""The schedule without a net: the reference's recorded multi-stage run, and the turns that it did not take."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from pruning import COMMON, GOLDEN, RECORDED, config, lenet5

from increg.budget import Budget, measure
from increg.stage_state import StageState
from increg.stages import Stages
from increg.state import LayerState

#: Accuracies of the recorded run that tie at the six printed digits with an earlier one, but must have been higher: the
#: reference took them for the better. (It says so itself, by the iterations it went back to.) By number of the test.
HIGHER_THAN_PRINTED = {171, 210, 325}


class FakeTrainer:
    """Keeps what a snapshot must keep of `layers`, and takes accuracies from a list."""

    def __init__(self, layers: list[LayerState], accuracies: Iterator[float] | Callable[[FakeTrainer], float]) -> None:
        self.layers = layers
        self.given = accuracies
        self.iter = 0
        self.tested: list[int] = []
        self.snapshots: dict[tuple[str, int], list[tuple[float, int]]] = {}
        self.restored: list[tuple[str, int]] = []
        self.left_over: dict[int, list[float]] = {}
        self.passes, self.rate, self.stopped = 1, 0.0, False
        self.stages: Stages | None = None

    def accuracies(self) -> list[np.float32]:
        self.tested.append(self.iter)
        return [np.float32(self.given(self) if callable(self.given) else next(self.given))]

    def snapshot(self, infix: str) -> None:
        self.snapshots[infix, self.iter] = [(layer.num_columns, layer.num_rows) for layer in self.layers]

    def restore(self, infix: str, iteration: int) -> str:
        self.iter = iteration
        self.restored.append((infix, iteration))
        for layer, (columns, rows) in zip(self.layers, self.snapshots[infix, iteration]):
            layer.num_columns, layer.num_rows = columns, rows
            layer.update_ratios()
            self.stages.check_layer(layer, iteration + 1)
        return f"s{infix}_iter_{iteration}.solverstate"

    def set_rate(self, rate: np.float32) -> None:
        self.rate = float(rate)

    def set_passes(self, passes: int) -> None:
        self.passes = passes

    def clear_left_over(self, layer: LayerState, ceiling: np.float32) -> list[float]:
        return self.left_over.get(layer.index, [])

    def budget(self) -> Budget:
        return measure(self.layers)

    def report_layers(self) -> None:
        self.stages.say("[app] (report)")

    def stop(self) -> None:
        self.stopped = True


def run(stages: Stages, trainer: FakeTrainer, prune: Callable[[int], None], limit: int = 60000) -> int:
    """Iterates until the schedule stops; `prune(step)` changes counts before a forward pass. Returns the iterations run."""
    trainer.stages = stages
    for layer in trainer.layers:
        layer.update_ratios()
    stages.begin()
    for count in range(limit):
        if trainer.stopped:
            return count
        step = trainer.iter + 1
        prune(step)
        for layer in trainer.layers:
            layer.update_ratios()
            stages.check_layer(layer, step)
        if not stages.now.rate:
            stages.now.rate = float(np.float32(0.0005))
        stages.after_update()
        stages.update_budget()
        trainer.iter += 1
    return limit


# -- the recorded run -------------------------------------------------------------------------------------------------

def recorded_events() -> list[str]:
    return [line.strip() for line in (GOLDEN / "multistage_events.txt").read_text().splitlines() if line.strip()]


def recorded_stages(events: list[str]) -> list[dict]:
    """What the log tells of each stage's end: iteration, speedup, column ratios, punishments left over."""
    found = []
    for i, line in enumerate(events):
        match = re.match(r"Current pruning stage .* speedup: (\S+), iter: (\d+)", line)
        if match:
            ratios = [float(events[i + k].split()[-1]) for k in (1, 2)]
            left = {int(text[0]): [float(value) for value in text.split("cleared:")[1].split()]
                    for text in events[i + 3:i + 5] if "left reg" in text}
            found.append({"speedup": match[1], "last": int(match[2]) + 1, "ratios": ratios, "left": left})
    return found


@pytest.fixture(scope="module")
def replayed() -> tuple[list[str], FakeTrainer, int]:
    """The lines printed, fed with the recorded accuracies and finish steps."""
    events = recorded_events()
    ends = recorded_stages(events)
    finished = json.loads((GOLDEN / "multistage_finished.json").read_text())["finished"]
    finishes = {(entry["layer"], entry["step"]) for entry in finished[2:]}
    accuracies = [float(match[1]) for line in events if (match := re.search(r"current acc = (\S+),", line))]
    exact = [np.nextafter(np.float32(value), np.float32(1)) if i in HIGHER_THAN_PRINTED else value
             for i, value in enumerate(accuracies)]
    lines: list[str] = []
    layers = lenet5(0.9, 0.9)
    settings = config(COMMON + RECORDED["multistage"][0], as_reference=True)
    trainer = FakeTrainer(layers, iter(exact))
    stages = Stages(settings, layers, trainer, lines.append)

    def prune(step: int) -> None:
        if stages.now.state != "prune":
            return
        end = ends[stages.now.stage - 1]
        trainer.left_over = end["left"]
        for layer, ratio in zip(layers, end["ratios"]):
            if (layer.name, step) in finishes:
                layer.num_columns = float(round(ratio * layer.layout.columns))
        if step == end["last"]:  # the rows of conv1 that followed conv2's columns are not in the log, but the speedup is
            rows = range(20)
            layers[0].num_rows = next(row for row in rows if speedup(layers, row) == end["speedup"])

    count = run(stages, trainer, prune)
    return lines, trainer, count


def speedup(layers: list[LayerState], rows: int) -> str:
    layers[0].num_rows = rows
    for layer in layers:
        layer.update_ratios()
    return f"{measure(layers).speedup:g}"


def test_recorded_run_line_for_line(replayed: tuple[list[str], FakeTrainer, int]) -> None:
    lines, trainer, count = replayed
    events = recorded_events()
    expected = events[:next(i for i, line in enumerate(events) if line.startswith("Print final"))]
    found = [re.sub(r" \(\d{4}/\d\d/\d\d-\d\d:\d\d\)", "", line[len("[app]"):]).strip() for line in lines
             if line.startswith("[app]")]
    found = [line for line in found if line and line != "(report)"]
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        assert numberless(ours) == numberless(theirs)
        # The log has accuracies to six digits; increases are ten times their differences.
        np.testing.assert_allclose(numbers(ours), numbers(theirs), rtol=0, atol=1e-5, err_msg=theirs)
    assert len(trainer.tested) == 423
    assert count == 45101


def numberless(line: str) -> str:
    return re.sub(r"\d+(\.\d+)?(e-\d+)?", "#", line).replace("-#", "#")


def numbers(line: str) -> list[float]:
    return [float(match) for match in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-\d+)?", line)]


def test_recorded_finish_steps(replayed: tuple[list[str], FakeTrainer, int]) -> None:
    lines, _, _ = replayed
    found = [(line.split()[0], int(re.search(r"step: (\d+)", line)[1])) for line in lines if "prune finished!" in line]
    finished = json.loads((GOLDEN / "multistage_finished.json").read_text())["finished"]
    assert found == [(entry["layer"], entry["step"]) for entry in finished]


# -- other turns ------------------------------------------------------------------------------------------------------

BASE = COMMON + 'prune_method: "Reg_Col" AA: 0.1 target_reg: 1 baseline_acc: 0.9 losseval_interval: 3 '


def short(text: str, accuracy: Callable[[FakeTrainer], float],
          as_reference: bool = False) -> tuple[list[str], FakeTrainer, Stages]:
    """Layers reach each aim two iterations after it is set."""
    lines: list[str] = []
    layers = lenet5(0.5, 0.5)
    trainer = FakeTrainer(layers, accuracy)
    stages = Stages(config(BASE + text, as_reference), layers, trainer, lines.append)
    since: dict[float, int] = defaultdict(int)

    def prune(step: int) -> None:
        if stages.now.state == "prune":
            since[float(layers[1].ratio_now)] += 1
            if since[float(layers[1].ratio_now)] >= 2:
                for layer in layers[:2]:
                    layer.num_columns = max(layer.num_columns, float(np.ceil(layer.layout.columns * layer.ratio_now)))

    run(stages, trainer, prune, 2000)
    return lines, trainer, stages


def good_once(trainer: FakeTrainer) -> float:
    """An accuracy that only the first stage has."""
    return 0.8 if any(infix == "_stage1" for infix, _ in trainer.snapshots) else 0.9


def test_one_stage_ends_with_the_best_weights() -> None:
    lines, trainer, stages = short("acc_borderline: -1 retrain_test_interval: 5",
                                   lambda trainer: 0.5 + (trainer.iter == 20) / 4)
    assert trainer.stopped and stages.now.done
    assert trainer.restored[-1] == ("_stage1-retrain", 20)
    assert trainer.passes == 8  # iter_size_final_retrain, as without a borderline retraining is final
    assert "'Given pr to get acc' task done!" in lines[-1]
    # A first period waits for 4 + 2 + 2 tests after the best one, later ones for 4 + 2; three of them end it.
    assert trainer.tested[:12] == [5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60]
    assert trainer.tested[13] == 25


def test_rates_fall_and_come_back() -> None:
    _, trainer, stages = short("acc_borderline: 0.5 retrain_test_interval: 1", lambda trainer: 0.8)
    rates = np.float32(0.0005)
    assert stages.now.retrain_rate == pytest.approx(float(rates * np.float32(0.1) * np.float32(0.1)))
    assert trainer.stopped


def test_a_bad_stage_is_rolled_back_and_aims_lower() -> None:
    lines, trainer, stages = short(
        "acc_borderline: 0.85 retrain_test_interval: 1", good_once)
    text = "\n".join(lines)
    assert "accuracy **still good**" in text
    bad = next(i for i, line in enumerate(lines) if "accuracy **bad**" in line)
    assert "(stage = 1)" in lines[bad]
    increase = float(re.search(r"incre_pr: (\S+)", lines[bad + 1])[1])
    assert increase == pytest.approx(0.2 / (0.9 - 0.8) * (0.9 - 0.85), rel=1e-4)
    assert ("_stage1", stages.now.feasible_iter) in trainer.restored
    assert "going on" in text and "final_retrain" in text  # in the end, increases of less than 0.01 are not tried


def test_nothing_feasible_retrains_what_pruning_began_with() -> None:
    lines, trainer, stages = short("acc_borderline: 0.9 retrain_test_interval: 1", lambda trainer: 0.1)
    assert any("incre_pr is too small" in line for line in lines)
    assert trainer.restored[-1][0] == "_finalretrain"
    assert ("_stage0", 0) in trainer.restored
    assert stages.now.done


def test_early_stop() -> None:
    lines, trainer, stages = short("acc_borderline: 0.5 retrain_test_interval: 1 IF_eswpf: true", lambda trainer: 0.9)
    assert any("early stopped." in line for line in lines)
    assert not any("Go to 'final_retrain'" in line for line in lines)
    assert stages.now.done and trainer.stopped


@pytest.mark.parametrize("as_reference", [False, True])
def test_speedup_is_an_aim_of_its_own(as_reference: bool) -> None:
    """With it every layer is finished in the iteration after it is reached."""
    _, trainer, stages = short("acc_borderline: -1 retrain_test_interval: 5 speedup: 1.5", lambda trainer: 0.9, as_reference)
    assert stages.now.speedup_reached
    assert measure(trainer.layers).speedup >= 1.5
    assert all(layer.finished is not None for layer in trainer.layers)


def test_a_bad_stage_does_not_count_as_the_end() -> None:
    """It reached the speedup; the reference goes to final_retrain, we try less."""
    text = "acc_borderline: 0.85 retrain_test_interval: 1 speedup: 1.6"
    outcomes = {}
    for as_reference in (False, True):
        lines, _, _ = short(text, good_once, as_reference)
        marks = [line for line in lines if re.search(r"\*\*bad|All layer prune finished|Current pruning stage", line)]
        bad = next(i for i, line in enumerate(marks) if "bad" in line)
        outcomes[as_reference] = "All layer prune finished" in marks[bad + 1]
    assert outcomes == {False: False, True: True}


def test_the_lowest_accuracy_is_top_1() -> None:
    layers = lenet5(0.5, 0.5)
    for text, expected in (("IF_use_acc1: true", 0.5), ("IF_use_acc1: false", 0.75)):
        trainer = FakeTrainer(layers, lambda trainer: 0.0)
        settings = config(BASE + "acc_borderline: -1 retrain_test_interval: 1 " + text)
        stages = Stages(settings, layers, trainer, lambda line: None)
        trainer.stages = stages
        trainer.accuracies = lambda: [np.float32(0.75), np.float32(0.5)]
        stages.now.state = "retrain"
        stages.after_update()
        assert stages.now.best.accuracy == expected


def test_a_test_broken_off_changes_nothing() -> None:
    layers = lenet5(0.5, 0.5)
    trainer = FakeTrainer(layers, lambda trainer: 0.0)
    stages = Stages(config(BASE + "acc_borderline: -1 retrain_test_interval: 1"), layers, trainer, lambda line: None)
    trainer.accuracies = lambda: None
    stages.now.state = "retrain"
    before = stages.now.to_json()
    stages.after_update()
    assert stages.now.to_json() == before


def test_state_survives_json() -> None:
    _, _, stages = short("acc_borderline: 0.85 retrain_test_interval: 1", lambda trainer: 0.9)
    restored = StageState.from_json(json.loads(json.dumps(stages.now.to_json())))
    assert restored == stages.now
    assert restored.feasible_best.tests == stages.now.feasible_best.tests
