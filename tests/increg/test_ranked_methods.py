"""Pruning by importance over the net, and OrthoReg, on a net with a residual sum and batch normalization."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from digits import Digits, accuracy, rows_left
from dsa_nets import NETS
from pruning import Tiny, config, layer_state

from caffe_compat import Net, proto
from caffe_compat.errors import SolverError
from caffe_compat.plugins import create_solver
from caffe_compat.solver import Solver, SolverHook
from increg import PruneHook
from increg.methods import orthoreg_penalty
from increg.methods.orthoreg import shortcuts
from increg.methods.ranked import Ranked
from increg.ratios import foresee_rows
from increg.statistics import STATISTICS, Head, _class_shares, as_when_testing

RATIOS = 'prune_ratios { layer: "*" prune_ratio: 0.5 } prune_ratios { layer: "ip" prune_ratio: 0 } '


@pytest.fixture
def digits(residual_digits: Digits) -> Digits:
    return residual_digits


def make(digits: Digits, name: str, settings: str, prefix: str = "s") -> tuple[Solver, PruneHook]:
    solver, hook = digits.make(f'prune_method: "{name}_Row" {RATIOS} {settings}', prefix)
    solver.load_weights(digits.weights)
    return solver, hook


@pytest.mark.parametrize("name", ["BNScale", "Taylor", "OrthoReg"])  # the others prune digits in test_every_method
def test_they_prune_and_keep_accuracy(name: str, digits: Digits) -> None:
    """Half of all filters in two rounds, layers that are added up the same ones; the accuracy floor is far above what is
    left without retraining."""
    ranking = "rank_param { iter: 10 interval: 25 rounds: 2 samples: 100 }"
    solver, hook = make(digits, name, f"orthoreg_param {{ finetune: 10 {ranking} }}" if name == "OrthoReg" else ranking)
    solver.step(36)
    left = rows_left(hook)
    assert hook.stages.now.state != "prune"
    assert left["stem"] == left["outer"]
    # 48 channels, those of stem and outer counted once: a third, which truncates to 15, then a fourth of 33
    assert left["stem"] + left["inner"] + left["last"] == 48 - 15 - 8
    stem, outer = hook.layers[0], hook.layers[2]
    assert torch.equal(stem.masks.rows, outer.masks.rows)
    solver.step(60)
    solver.set_rate(0.01)
    solver.step(40)
    assert rows_left(hook) == left
    for layer in hook.layers:
        assert (layer.weight.tensor[layer.masks.zeros()] == 0).all()
    assert accuracy(solver) >= 0.9
    assert set(hook.numbers(stem)) == {"score"}


def test_rounds_use_what_the_last_one_left(digits: Digits) -> None:
    """Pruned filters are not counted or judged again."""
    solver, hook = make(digits, "GlobalL1", "rank_param { interval: 5 thresholds: 0.2 thresholds: 0.5 protect: NONE }")
    assert hook.method.ratios == pytest.approx([0.2, 0.3 / 0.8])
    norms = {layer.name: layer.weight.tensor.abs().flatten(1).sum(1) for layer in hook.layers[:4]}
    norms["stem"] = (norms["stem"] + norms["outer"]) / 2
    every = torch.cat([norms[name] for name in ("stem", "inner", "last")]).sort().values
    solver.step(1)
    for name in ("stem", "inner", "last"):
        masks = next(layer.masks for layer in hook.layers if layer.name == name)
        assert torch.equal(masks.rows, norms[name] < every[9])
    assert sum(rows_left(hook)[name] for name in ("stem", "inner", "last")) == 39
    solver.step(5)
    assert sum(rows_left(hook)[name] for name in ("stem", "inner", "last")) == 39 - 14


@pytest.mark.parametrize("name", ["GlobalL1", "Fisher"])
@pytest.mark.parametrize("aim", ["speedup", "compression"])
def test_a_target_is_met_by_the_ranking(name: str, aim: str, digits: Digits) -> None:
    """However unevenly filters go, half of the way after the first of two rounds, and not by a filter more than it takes."""
    solver, hook = digits.make(f'prune_method: "{name}_Row" prune_target {{ {aim}: 2.5 }} '
                               "rank_param { interval: 2 rounds: 2 protect: NONE samples: 64 }", "s")
    solver.load_weights(digits.weights)

    def reached() -> float:
        return getattr(foresee_rows(hook.layers, {}, hook.config, hook.pruner.coupling), aim)

    solver.step(1)
    assert 2.5 ** 0.5 <= reached() < 1.25 * 2.5 ** 0.5
    solver.step(2)
    assert 2.5 <= reached() < 1.25 * 2.5
    assert hook.stages.now.state != "prune"


def test_each_layer_its_share(digits: Digits) -> None:
    solver, hook = make(digits, "Fisher", "rank_param { per_layer: true protect: NONE samples: 64 }")
    solver.step(1)
    assert rows_left(hook) == {"stem": 6, "inner": 8, "outer": 6, "last": 10, "ip": 10}


def test_least_groups_stay(digits: Digits) -> None:
    solver, hook = make(digits, "BNScale", "least_groups: 5 rank_param { thresholds: 0.9 protect: NONE }")
    solver.step(1)
    left = rows_left(hook)
    assert min(left[name] for name in ("stem", "inner", "last")) == 5


def test_depthwise_convolutions_follow(tmp_path: Path) -> None:
    """A channel is judged once, by the convolution that makes it."""
    (tmp_path / "net.prototxt").write_text(INVERTED)
    solver = f"""net: "{tmp_path}/net.prototxt" base_lr: 0.01 lr_policy: "fixed" solver_mode: CPU random_seed: 1
        snapshot_prefix: "{tmp_path}/s" prune_method: "GlobalL1_Row" prune_ratios {{ layer: "expand" prune_ratio: 0.5 }}
        prune_ratios {{ layer: "depthwise" prune_ratio: 0.5 }} rank_param {{ protect: NONE }}"""
    (tmp_path / "solver.prototxt").write_text(solver)
    made = create_solver(tmp_path / "solver.prototxt", keep_blobs=False)
    with torch.no_grad():
        made.net.params["depthwise"][0].tensor.mul_(torch.arange(8, 0, -1).reshape(8, 1, 1, 1))
    norms = made.net.params["expand"][0].tensor.abs().flatten(1).sum(1)
    made.step(1)
    (hook,) = made.hooks
    expand, depthwise = hook.layers[:2]
    assert torch.equal(expand.masks.rows, norms < norms.sort().values[4])
    assert torch.equal(depthwise.masks.rows, expand.masks.rows)


INVERTED = """
layer { name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param { shape { dim: 4 dim: 3 dim: 6 dim: 6 }
  shape { dim: 4 } data_filler { type: "gaussian" std: 1 } data_filler { type: "constant" value: 1 } } }
layer { name: "expand" type: "Convolution" bottom: "data" top: "expand" convolution_param { num_output: 8 kernel_size: 1
  weight_filler { type: "xavier" } } }
layer { name: "depthwise" type: "Convolution" bottom: "expand" top: "depthwise" convolution_param { num_output: 8
  kernel_size: 3 group: 8 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "depthwise" top: "ip" inner_product_param { num_output: 3
  weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


# -- statistics -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", STATISTICS.names())
def test_statistics_leave_no_trace(name: str, digits: Digits) -> None:
    """Weights, running statistics and phase are as before; only the data have moved on."""
    solver, _ = digits.make("")
    solver.load_weights(digits.weights)
    net = solver.net
    before = [blob.tensor.detach().clone() for blobs in net.params.values() for blob in blobs]
    values = STATISTICS.get(name)(net, 20, 200.0)
    assert len(values) == len(net.learnable)
    assert all(torch.equal(old, blob.tensor) for old, blob in
               zip(before, (blob for blobs in net.params.values() for blob in blobs), strict=True))
    assert net.context.training
    assert all(learnable.blob.grad is None for learnable in net.learnable)


def test_the_phase_comes_back_after_an_error(digits: Digits) -> None:
    solver, _ = digits.make("")
    with pytest.raises(ZeroDivisionError), as_when_testing(solver.net):
        assert not solver.net.layer_dict["stem_bn"].by_batch
        raise ZeroDivisionError
    assert solver.net.layer_dict["stem_bn"].by_batch


def test_hessian_gradient_is_the_derivative_of_the_gradient(digits: Digits) -> None:
    """Against the difference of gradients at w + e g and w - e g over the same samples, in a net without kinks."""
    text = (digits.folder / "net.prototxt").read_text().replace('type: "ReLU"', 'type: "TanH"')
    (digits.folder / "smooth.prototxt").write_text(text)
    net = Net(str(digits.folder / "smooth.prototxt"), "TRAIN", keep_blobs=False, seed=5)
    net.copy_from(digits.weights)
    start = net.layer_dict["data"].state()
    found = [value for value in STATISTICS.get("curvature")(net, 20, 5.0) if value is not None]
    head = Head(net)

    def gradient() -> list[torch.Tensor]:
        net.layer_dict["data"].load_state(start)
        parts = [torch.autograd.grad(head.loss(share, 5.0), head.parameters) for share in _class_shares(head, 20)]
        return [sum(values) for values in zip(*parts)]

    with as_when_testing(net):
        direction = gradient()
        step = 1e-2 / torch.cat([part.flatten() for part in direction]).norm()
        ends = []
        for sign in (1, -1):
            for parameter, part in zip(head.parameters, direction):
                parameter.detach().add_(part * step, alpha=sign)
            ends.append(gradient())
            for parameter, part in zip(head.parameters, direction):
                parameter.detach().sub_(part * step, alpha=sign)
    for ours, plus, minus in zip(found, *ends, strict=True):
        wanted = (plus - minus) / (2 * step)
        # float32 noise of the difference by the step, and the step's square
        torch.testing.assert_close(ours, wanted, rtol=0, atol=0.02 * float(wanted.abs().max()))


def test_a_class_that_does_not_turn_up(digits: Digits) -> None:
    text = (digits.folder / "net.prototxt").read_text().replace("num_output: 10", "num_output: 11")
    (digits.folder / "eleven.prototxt").write_text(text)
    net = Net(str(digits.folder / "eleven.prototxt"), "TRAIN", keep_blobs=False)
    with pytest.raises(SolverError, match=r"class 10 of 11 turned up 0 times"):
        STATISTICS.get("curvature")(net, 11, 200.0)


# -- OrthoReg ---------------------------------------------------------------------------------------------------------

class Penalties(SolverHook):
    """When the penalty is on, how large it is, and the weight decay held."""

    name = "penalties"

    def __init__(self, hook: PruneHook) -> None:
        self.hook, self.values, self.on, self.decays = hook, [], [], []

    def on_updated(self, solver: Solver) -> None:
        method = self.hook.method
        self.on.append(method.regularizing)
        self.decays.append(solver._decay(solver._groups[0]))
        self.values.append(penalty(method).item())


def penalty(method: Ranked) -> torch.Tensor:
    terms = method.terms()
    return sum(share * orthoreg_penalty.value(layer.weight.tensor, None, term.by_filters)
               for layer, term, share in zip(method._convolutions, terms, orthoreg_penalty.coefficients(terms)))


def test_the_penalty_is_on_before_each_round(digits: Digits) -> None:
    settings = "orthoreg_param { factor: 0.1 finetune: 3 rank_param { iter: 20 interval: 8 rounds: 2 samples: 64 } }"
    solver, hook = make(digits, "OrthoReg", settings)
    watch = Penalties(hook)
    solver.add_hook(watch)
    solver.step(34)
    expected = [*range(20), 25, 26, 27]
    assert [i for i, on in enumerate(watch.on) if on] == expected
    assert [i for i, decay in enumerate(watch.decays) if decay == 0] == expected
    assert watch.values[19] < 0.8 * watch.values[0]


@pytest.mark.parametrize("every", [1, 4])
def test_a_step_follows_the_penalized_loss(every: int, digits: Digits) -> None:
    """The update of plain SGD is that of torch's gradient of loss + factor * penalty; each n-th, n times as strong."""
    sgd = "momentum: 0 base_lr: 0.1 weight_decay: "
    settings = f"{sgd} 0.1 orthoreg_param {{ factor: 0.05 every: {every} rank_param {{ iter: 9 samples: 64 }} }}"
    solver, hook = make(digits, "OrthoReg", settings, f"every{every}")
    plain, _ = digits.make(f"{sgd} 0", f"plain{every}")
    for step in range(1, 5):
        with torch.no_grad():
            for ours, theirs in zip(solver.learnable, plain.learnable, strict=True):
                theirs.blob.tensor.copy_(ours.blob.tensor)
        before = [layer.weight.tensor.detach().clone() for layer in hook.layers[:4]]
        weights = [layer.weight.tensor.detach().clone().requires_grad_() for layer in hook.layers[:4]]
        terms = hook.method.terms()
        total = sum(share * orthoreg_penalty.value(weight, None, term.by_filters)
                    for weight, term, share in zip(weights, terms, orthoreg_penalty.coefficients(terms)))
        extra = torch.autograd.grad(0.05 * total, weights)
        solver.step(1)
        plain.step(1)
        strength = every if step % every == 0 else 0
        for layer, old, change in zip(hook.layers, before, extra):
            loss_alone = plain.net.params[layer.name][0].tensor.detach()
            np.testing.assert_allclose(layer.weight.tensor.detach(), loss_alone - 0.1 * strength * change, rtol=0, atol=2e-6)
            assert not torch.equal(old, loss_alone)


def test_shortcuts() -> None:
    """branch1 of a bottleneck goes with branch2a, both 1x1 and reading one blob; identity shortcuts have none."""
    def found(net: Net) -> dict[str, str]:
        convolutions = [layer_state(layer.name, layer.blobs[0].shape) for layer in net.layers if layer.type == "Convolution"]
        return {convolutions[i].name: convolutions[k].name for i, k in shortcuts(net, convolutions).items()}

    resnet50 = Net(Path(__file__).parents[2] / "prototxt" / "resnet50" / "deploy.prototxt", "TEST")
    assert found(resnet50) == {f"res{stage}a_branch1": f"res{stage}a_branch2a" for stage in range(2, 6)}
    resnet20 = Net(proto.parse_text(NETS["cifar10_resnet20_dsconv_masked_plan1_bn"](), "NetParameter"), "TEST")
    assert found(resnet20) == {f"layer{stage}.0.skip_op": f"layer{stage}.0.op_1" for stage in (2, 3)}
    assert found(Net(proto.parse_text(NETS["vgg16_masked"](), "NetParameter"), "TEST")) == {}


# -- bad settings -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("settings", "message"), [
    ('"Fisher_Row" rank_param { rounds: 0 }', "rounds is 0"),
    ('"Fisher_Row" rank_param { rounds: 2 }', "several rounds need an interval"),
    ('"Fisher_Row" rank_param { interval: 3 thresholds: 0.5 thresholds: 0.4 }', "thresholds are 0.5, 0.4, expected rising"),
    ('"Taylor_Row" prune_target { speedup: 2 } rank_param { thresholds: 0.5 }', "leave one of them out"),
    ('"Taylor_Row" rank_param { thresholds: 1 }', "thresholds are 1, expected rising"),
    ('"RD_Row" rank_param { protect_share: 1 }', "protect_share is 1"),
    ('"GraSP_Row" rank_param { temperature: 0 }', "temperature is 0"),
    ('"OrthoReg_Row" orthoreg_param { factor: 0 }', "factor is 0"),
    ('"OrthoReg_Row" orthoreg_param { every: 0 }', "every is 0"),
    ('"OrthoReg_Row" orthoreg_param { rank_param { rounds: 3 } }', "several rounds need an interval"),
    ('"Fisher_Col"', "prunes by Row alone, not by Col"),
])
def test_settings_that_cannot_be(settings: str, message: str) -> None:
    with pytest.raises(SolverError, match=message):
        config(f"prune_method: {settings}")


@pytest.mark.parametrize("name", ["BNScale", "Taylor"])
def test_no_scale_to_judge_by(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(SolverError, match=r"conv1 .*: .*_Row judges filters by the Scale behind the layer's BatchNorm"):
        Tiny(tmp_path_factory.mktemp("tiny")).make(f'prune_method: "{name}_Row"')
