"""Pruning through a solver, on a tiny net: what stays zero, exact resuming, the fork's fields, the lines printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pruning import Tiny

from caffe_compat import proto
from caffe_compat.errors import WeightError
from caffe_compat.solver import Solver, SolverHook
from increg import PruneHook
from increg.record import Recorder, read_record

ROW = 'prune_method: "Reg_Row" regularization_type: "Reg_Row"'
SPATIAL = 'prune_method: "Reg_Col" regularization_type: "RegSpa_Col"'
KINDS = {
    "columns": ("", False), "columns, scheme 2": ("IF_scheme1_when_Reg_rank: false", False), "rows": (ROW, False),
    "rows as the reference": (ROW, True), "positions": (SPATIAL, False), "positions as the reference": (SPATIAL, True),
    "several passes": ("iter_size: 2 iter_size_prune: 2", False), "Adam": ('type: "Adam" momentum2: 0.99', False),
}


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return Tiny(tmp_path)


def everything(solver: Solver, hook: PruneHook) -> dict[str, object]:
    """All that a run consists of, to be compared bit for bit."""
    found: dict[str, object] = {}
    for learnable, slots in zip(solver.learnable, solver.history, strict=True):
        name = f"{learnable.layer_name}/{learnable.index}"
        found[name] = learnable.blob.data.tobytes()
        found[f"{name} history"] = [slot.numpy().tobytes() for slot in slots]
    table = hook.method.table
    found["table"] = [tensor.numpy().tobytes() for tensor in (table.score, table.punish, table.pruned)]
    found["schedule"] = hook.stages.now
    found["layers"] = [(layer.num_rows, layer.num_columns, layer.finished, layer.ratio_now, layer.last_feasible,
                        layer.masks.rows.tolist(), layer.masks.columns.tolist()) for layer in hook.layers]
    found["rate"] = solver.rate
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("halfway", [6, 17, 28])
def test_resuming_is_exact(kind: str, halfway: int, tiny: Tiny) -> None:
    """Before, while and after groups are pruned; 28 lies in retraining for most methods."""
    settings, as_reference = KINDS[kind]
    whole, hook = tiny.make(settings, as_reference=as_reference)
    whole.step(40)
    expected = everything(whole, hook)
    assert any(layer.num_columns or layer.num_rows for layer in hook.layers)
    half, _ = tiny.make(settings, as_reference=as_reference)
    half.step(halfway)
    resumed, hook = tiny.make(settings, as_reference=as_reference)
    resumed.restore(half.snapshot("_half"))
    resumed.step(40 - halfway)
    found = everything(resumed, hook)
    assert {key: found[key] == value for key, value in expected.items()} == dict.fromkeys(expected, True)


@pytest.mark.parametrize("settings", ["", "speedup: 1.2"])
def test_every_iteration_can_be_resumed_from(settings: str, tiny: Tiny) -> None:
    """Also one in which a group is pruned, whose weights are not zero yet, and which reaches the speedup aimed at."""
    solver, hook = tiny.make(settings)
    states = []
    pruned_at = []
    for _ in range(24):
        before = hook.layers[0].num_columns + hook.layers[1].num_columns
        solver.step(1)
        pruned_at.append(hook.layers[0].num_columns + hook.layers[1].num_columns > before)
        states.append(solver.snapshot("_each"))
    expected = everything(solver, hook)
    assert sum(pruned_at) >= 3
    for path, pruned in zip(states[:-1], pruned_at):
        if pruned:
            resumed, hook = tiny.make(settings)
            resumed.restore(path)
            resumed.step(24 - resumed.iter)
            assert everything(resumed, hook) == expected


class StopAfter(SolverHook):
    """Stops after a number of updates; the solver's own count goes back with every roll-back."""

    name = "count"

    def __init__(self, limit: int) -> None:
        self.left = limit

    def on_updated(self, solver: Solver) -> None:
        self.left -= 1
        if not self.left:
            solver.stop()


@pytest.mark.parametrize("as_reference", [False, True])
@pytest.mark.parametrize("halfway", [30, 55])
def test_resuming_is_exact_across_stages(halfway: int, as_reference: bool, tiny: Tiny) -> None:
    """With retraining, falling rates and roll-backs on the way."""
    settings = "acc_borderline: 0.3 baseline_acc: 0.9 retrain_test_interval: 1 losseval_interval: 1 AA: 0.04"

    def run(limit: int, state: str | None = None) -> tuple[Solver, PruneHook]:
        solver, hook = tiny.make(settings, as_reference=as_reference)
        solver.add_hook(StopAfter(limit))
        if state:
            solver.restore(state)
        solver.step(10000)
        return solver, hook

    whole = run(80)
    assert whole[1].stages.now.stage > 1
    half, _ = run(halfway)
    assert everything(*run(80 - halfway, half.snapshot("_half"))) == everything(*whole)


def without_extras(path: str) -> str:
    """The state as the reference would have written it."""
    document = proto.read_binary(path, "SolverState", dialect=proto.INCREG)
    for i in reversed(range(len(document.message.extra))):
        del document.message.extra[i]
    bare = path.replace("_iter_", "_bare_iter_")
    document.arrays = {key: np.array(value) for key, value in document.arrays.items()}
    proto.write_binary(bare, document)
    return bare


@pytest.mark.parametrize("as_reference", [False, True])
def test_a_state_of_the_reference_is_taken_up(as_reference: bool, tiny: Tiny) -> None:
    """It has neither masks nor the data's position; here the data are at their start, and dropout is off."""
    no_dropout = {"layer { name: \"drop\" type: \"Dropout\" bottom: \"conv2\" top: \"conv2\" }": ""}
    whole, hook = tiny.make(net=no_dropout, as_reference=as_reference)
    whole.step(20)
    path = whole.snapshot("_half")  # 20 batches of 8 are four rounds of the data
    masks = [layer.masks.columns.clone() for layer in hook.layers]
    assert any(mask.any() for mask in masks)
    whole.step(15)
    resumed, again = tiny.make(net=no_dropout, as_reference=as_reference)
    resumed.restore(without_extras(path))
    assert all(torch.equal(layer.masks.columns, mask) for layer, mask in zip(again.layers, masks))
    assert again.stages.now.state == "prune" and again.stages.now.stage == 1
    resumed.step(15)
    for ours, theirs in zip(resumed.learnable, whole.learnable):
        np.testing.assert_array_equal(ours.blob.data, theirs.blob.data)


@pytest.mark.parametrize("as_reference", [False, True])
def test_a_countdown_goes_on(as_reference: bool, tiny: Tiny) -> None:
    """The reference starts it anew, because it finds the layers finished once more."""
    solver, hook = tiny.make("losseval_interval: 50", as_reference=as_reference)
    while hook.stages.now.state == "prune":
        solver.step(1)
    solver.step(3)
    finished = hook.stages.now.finished_iter
    resumed, hook = tiny.make("losseval_interval: 50", as_reference=as_reference)
    resumed.restore(without_extras(solver.snapshot()))
    assert hook.stages.now.state == "losseval"
    assert hook.stages.now.finished_iter == (resumed.iter if as_reference else finished)
    assert finished < resumed.iter


def test_a_group_pruned_last_is_known_by_its_score(tiny: Tiny) -> None:
    """The update that prunes it leaves it at -rate * diff."""
    solver, hook = tiny.make()
    layer = hook.layers[1]
    while not layer.num_columns:
        solver.step(1)
    pruned = layer.masks.columns[0]
    assert (layer.layout.matrix(layer.weight.tensor.detach())[:, pruned] != 0).any()
    bare = without_extras(solver.snapshot())
    resumed, hook = tiny.make()
    resumed.restore(bare)
    assert torch.equal(hook.layers[1].masks.columns[0], pruned)
    solver.step(1)
    assert (layer.layout.matrix(layer.weight.tensor.detach())[:, pruned] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_pruned_stays_zero(kind: str, tiny: Tiny) -> None:
    settings, as_reference = KINDS[kind]
    solver, hook = tiny.make(settings, as_reference=as_reference)
    zero: dict[str, torch.Tensor] = {}
    for _ in range(30):
        before = {layer.name: (layer.masks.rows.clone(), layer.masks.columns.clone()) for layer in hook.layers}
        solver.step(1)
        for layer in hook.layers:
            rows, columns = before[layer.name]
            weight = layer.layout.matrix(layer.weight.tensor.detach())
            if layer.pruned_ratio > 0:
                assert (weight[rows] == 0).all() and (weight[:, columns[0]] == 0).all()
            known = zero.get(layer.name)
            if known is not None and not hook.pruner.method.rectangle:
                assert (weight[known] == 0).all()
            zero[layer.name] = (rows[:, None] | columns[0]).expand_as(weight)
    assert any(mask.any() for mask in zero.values())


def test_rectangles(tiny: Tiny) -> None:
    solver, hook = tiny.make(SPATIAL)
    while not all(layer.finished is not None for layer in hook.layers):
        solver.step(1)
    solver.step(1)
    for layer in hook.layers[:2]:
        kept = ~layer.masks.columns.reshape(layer.layout.channels, 3, 3)
        assert (kept == kept[0]).all()
        rows, columns = kept[0].any(1), kept[0].any(0)
        assert torch.equal(kept[0], rows[:, None] & columns)
        for ends in (rows, columns):
            places = ends.nonzero().flatten()
            assert len(places) == places[-1] - places[0] + 1
    assert hook.layers[0].pruned_ratio_column == np.float32(hook.layers[0].num_columns / hook.layers[0].layout.columns)


def test_no_weight_decay(tiny: Tiny) -> None:
    """The reference prunes nothing then."""
    pruned = {}
    for as_reference in (False, True):
        solver, hook = tiny.make("weight_decay: 0", as_reference=as_reference)
        solver.step(20)
        pruned[as_reference] = sum(layer.num_columns for layer in hook.layers)
    assert pruned[False] > 0
    assert pruned[True] == 0


def test_the_rate_of_the_first_update_is_held(tiny: Tiny) -> None:
    solver, _ = tiny.make('lr_policy: "exp" gamma: 0.9')
    rates = []
    for _ in range(4):
        solver.step(1)
        rates.append(solver.rate)
    assert rates == [float(np.float32(0.01))] * 4


def test_passes_follow_the_state(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The iteration that ends a state still runs that state's number of passes."""
    solver, hook = tiny.make("iter_size_prune: 3")
    passes = []
    forward_backward = solver.net.forward_backward
    monkeypatch.setattr(solver.net, "forward_backward", lambda: passes.append(hook.stages.now.state) or forward_backward())
    while hook.stages.now.state == "prune":
        passes.clear()
        solver.step(1)
    assert len(passes) == 3
    passes.clear()
    solver.step(1)
    assert passes == ["losseval"] * 2  # iter_size_final_retrain, as there is no borderline


def test_a_whole_run(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    """From the first snapshot to the last line; the output are the weights of the best test."""
    solver, hook = tiny.make("max_iter: 1000 retrain_test_interval: 2 snapshot: 7")
    solver.solve()
    printed = capsys.readouterr().out
    assert hook.stages.now.done and solver.stopped
    finished = dict(re.findall(r"^(\w+) prune finished!  step: (\d+)  net speedup: 10000", printed, re.MULTILINE))
    assert finished.keys() == {"ip", "conv1", "conv2"}
    assert finished["ip"] == "1"
    lines = [line for line in printed.splitlines() if line.startswith("[app]")]
    assert re.fullmatch(r"\[app\] Training starts, iter: 0 \(\d{4}/\d\d/\d\d-\d\d:\d\d\), speedup: 1, compRatio: 1", lines[0])
    assert sum("Current pruning stage (stage = 1) finished." in line for line in lines) == 1
    best = re.search(r"Output the best caffemodel, iter = (\d+), acc = ([\d.]+)\.", printed)
    tested = {int(i): acc for acc, i in re.findall(r"'retrain' going on, current acc = ([\d.]+), iter: (\d+)", printed)}
    assert float(best[2]) == pytest.approx(max(map(float, tested.values())), abs=1e-6)
    assert lines[-1] == "[app]    'Given pr to get acc' task done!"
    output = proto.read_binary(tiny.folder / f"s_stage1-retrain_iter_{best[1]}.caffemodel", "NetParameter")
    last = sorted(tiny.folder.glob("s_iter_*.caffemodel"))
    saved = [proto.read_binary(path, "NetParameter") for path in last]
    assert any(all(np.array_equal(found.arrays[key], value) for key, value in output.arrays.items()) for found in saved)
    assert (tiny.folder / "s_stage0_iter_0.solverstate").exists()


def test_only_the_newest_regular_snapshot_is_kept(tiny: Tiny) -> None:
    solver, _ = tiny.make("snapshot: 3")
    solver.step(10)
    assert sorted(path.name for path in tiny.folder.glob("s_iter_*")) == ["s_iter_9.caffemodel", "s_iter_9.solverstate"]
    assert (tiny.folder / "s_stage0_iter_0.caffemodel").exists()


def test_the_output_that_judges_can_be_named(tiny: Tiny, tmp_path: Path) -> None:
    """The run is the one that its usual name would have made, and so is the record."""
    def run(output: str, settings: str) -> tuple[list[Any], list[Any]]:
        solver, hook = tiny.make(f"max_iter: 1000 retrain_test_interval: 2 {settings}", {'top: "accuracy"': f'top: "{output}"'})
        solver.add_hook(Recorder(hook, tmp_path / f"{output}.jsonl"))
        solver.solve()
        assert hook.stages.now.done
        tests = [row["accuracy"] for row in read_record(tmp_path / f"{output}.jsonl") if row["what"] == "test"]
        return tests, [blob.tensor.tolist() for blob in solver.net.params["conv2"]]

    assert run("score", 'accuracy_output: "score"') == run("accuracy", "")


def test_several_stages(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    """As far as the accuracy allows, with roll-backs, to the end."""
    solver, hook = tiny.make("acc_borderline: 0.3 baseline_acc: 0.9 retrain_test_interval: 1 losseval_interval: 1")
    solver.solve()
    printed = capsys.readouterr().out
    assert hook.stages.now.done
    assert "All prune done." in printed
    assert "Print final pruned ratio of all layers:" in printed
    assert re.search(r"conv2, shape = 8 6 3 3 \(432\) \| num_col = 54, num_pruned_col = \d+ \(0\.\d{6}\) \| num_row = 8",
                     printed)


@pytest.mark.parametrize("as_reference", [False, True])
def test_going_back_takes_the_data_along(as_reference: bool, tiny: Tiny) -> None:
    """The reference's data layers read on."""
    solver, hook = tiny.make(as_reference=as_reference)
    solver.step(3)
    hook.snapshot("_here")
    data = solver.net.layer_dict["data"]
    here = data.state()
    solver.step(2)
    further = data.state()
    assert here != further
    hook.restore("_here", 3)
    assert solver.iter == 3
    assert data.state() == (further if as_reference else here)


def test_going_back_does_not_turn_back_the_schedule(tiny: Tiny) -> None:
    solver, hook = tiny.make()
    solver.step(3)
    hook.snapshot("_here")
    solver.step(20)
    now = hook.stages.now.to_json()
    aims = [layer.ratio_now for layer in hook.layers]
    hook.restore("_here", 3)
    assert hook.stages.now.to_json() == now
    assert [layer.ratio_now for layer in hook.layers] == aims
    assert all(layer.num_columns == 0 for layer in hook.layers)


def test_a_layer_of_nothing_but_zeros_is_refused(tiny: Tiny) -> None:
    """As those of a net without fillers that nobody trained: everything would count as pruned."""
    solver, hook = tiny.make()
    hook.layers[1].weight.data[:] = 0
    solver.net.save(tiny.folder / "empty.caffemodel")
    solver, _ = tiny.make()
    with pytest.raises(WeightError, match=r"conv2 .*: all of its weights are zero, .* or give it a weight_filler"):
        solver.load_weights(str(tiny.folder / "empty.caffemodel"))


def test_weights_with_zeros_are_masked(tiny: Tiny) -> None:
    """Without a state, zeros are all that tells what is pruned."""
    solver, hook = tiny.make()
    weights = hook.layers[1].weight.data
    weights[:, 2, :, 1] = 0  # three columns
    weights[5] = 0
    solver.net.save(tiny.folder / "pruned.caffemodel")
    solver, hook = tiny.make()
    layer = hook.layers[1]
    solver.load_weights(str(tiny.folder / "pruned.caffemodel"))
    assert (layer.num_rows, layer.num_columns) == (1, 3)
    assert layer.pruned_ratio == pytest.approx(1 / 8 + 3 / 54 - 3 / 8 / 54)
    solver.step(3)
    assert not layer.weight.data[:, 2, :, 1].any() and not layer.weight.data[5].any()
    assert layer.weight.data.any()


# -- the fork's fields ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["columns", "rows", "rows as the reference", "positions"])
def test_fields_of_the_solverstate(kind: str, tiny: Tiny) -> None:
    settings, as_reference = KINDS[kind]
    solver, hook = tiny.make(settings, as_reference=as_reference)
    solver.step(14)
    document = proto.read_binary(solver.snapshot(), "SolverState", dialect=proto.INCREG)
    state, table = document.message, hook.method.table
    assert (state.prune_state, state.prune_stage, state.stage_iter_prune_finished) == ("prune", 1, 2147483647)
    assert len(state.history) == len(state.history_score) == len(state.history_punish) == 6
    for i, learnable in enumerate(solver.learnable):
        score, punish = (document.arrays[name, i] for name in ("history_score", "history_punish"))
        layer = next(layer for layer in hook.layers if layer.name == learnable.layer_name)
        if not layer.prunes:
            assert score.size == punish.size == 0
            continue
        assert score.shape == punish.shape == layer.layout.shape  # also in the place of the bias
        if learnable.index:
            assert not score.any() and not punish.any()
            continue
        score, punish = score.reshape(layer.layout.rows, -1), punish.reshape(layer.layout.rows, -1)
        values = table.row(table.punish, layer.table_index).numpy()
        ranks = table.row(table.score, layer.table_index).numpy()
        if "rows" in kind:
            assert (punish == values[:, None]).all()
            if not as_reference:
                np.testing.assert_array_equal(score[:, 0], ranks)
                assert not score[:, 1:].any()
        elif kind == "columns":
            assert (punish == values).all()
            np.testing.assert_array_equal(score[0], ranks)
            assert not score[1:].any()
        else:
            assert (punish == np.tile(values, layer.layout.channels)).all()
            np.testing.assert_array_equal(score.ravel()[:9], ranks)
            assert not score.ravel()[9:].any()
    for name, expected in (("current_prune_ratio", [0.5, 0.6, 0]), ("last_feasible_prune_ratio", [0, 0, 0]),
                           ("last_infeasible_prune_ratio", [0, 0, 0])):
        np.testing.assert_array_equal(document.arrays[name, 0], np.array(expected, np.float32))


def test_a_state_without_pruning_is_refused(tiny: Tiny) -> None:
    plain, _ = tiny.make('prune_method: "None"')
    plain.step(2)
    path = plain.snapshot("_plain")
    solver, _ = tiny.make()
    with pytest.raises(WeightError, match=r"found 0 history_score blobs, expected 6.*start from its .caffemodel"):
        solver.restore(path)


def test_a_state_of_another_net_is_refused(tiny: Tiny) -> None:
    solver, _ = tiny.make()
    path = solver.snapshot("_other")
    document = proto.read_binary(path, "SolverState", dialect=proto.INCREG)
    arrays = {key: np.array(value) for key, value in document.arrays.items()}
    arrays["history_punish", 2] = arrays["history_punish", 2][:, :3]
    document.arrays = arrays
    proto.write_binary(path, document)
    with pytest.raises(WeightError, match=r"history_punish of layer conv2 has shape 8 3 3 3 .*, the weight 8 6 3 3 "):
        solver.restore(path)
    arrays["history_punish", 2] = arrays["history_score", 2]
    arrays["current_prune_ratio", 0] = np.zeros(7, np.float32)
    proto.write_binary(path, document)
    with pytest.raises(WeightError, match="current_prune_ratio has 7 values, expected 3"):
        solver.restore(path)


def test_an_unknown_state_is_refused(tiny: Tiny) -> None:
    solver, _ = tiny.make()
    path = without_extras(solver.snapshot("_odd"))
    document = proto.read_binary(path, "SolverState", dialect=proto.INCREG)
    document.message.prune_state = "resting"
    document.arrays = {key: np.array(value) for key, value in document.arrays.items()}
    proto.write_binary(path, document)
    with pytest.raises(WeightError, match='prune_state is "resting", expected one of prune, losseval, retrain, final_retrain'):
        solver.restore(path)
