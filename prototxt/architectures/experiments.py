"""The files of the pruning experiments whose nets are too long, or whose solvers too many, to be written by hand.

Settings with a source: those of IncReg on VGG-16 and ResNet-50 (the reference's files), and GReg's ratios, rates and
batches (the README of its authors' code). The rest is ours; the experiments' READMEs say which is which.
"""

from __future__ import annotations

from functools import partial

from . import cifar10, pruning, resnet, vgg
from .pruning import EXPERIMENTS, Files, deploy_text
from .solvers import INCREG, PASSES, REFERENCE, SCHEDULE, SPATIAL, Settings, snapshots, solver, testing

NET = "train_val.prototxt"


def ratios(*, follow: bool = True, **by_pattern: float) -> Settings:
    """Ratios in the solver, by patterns of layer names; the others are not pruned, whatever the net says. With `follow` every
    layer loses the columns that read pruned rows: the nets' IF_update_row_col is for pruned columns, which must not take rows
    along that are added to others."""
    rest = {"layer": "*", "prune_ratio": 0.0, **({"IF_update_row_col": True} if follow else {})}
    return {"prune_ratios": [rest, *({"layer": pattern, "prune_ratio": value} for pattern, value in by_pattern.items())]}


def target(speedup: float) -> Settings:
    """One ratio for all convolutions, the least that reaches a speedup."""
    return {"prune_target": {"speedup": speedup}}


def baseline(title: str, base_lr: float, weight_decay: float, steps: list[int], max_iter: int, test_iter: int) -> str:
    """A solver that trains, dividing the learning rate by 10 at each of `steps`."""
    return solver(title, NET, [
        {"base_lr": base_lr, "lr_policy": "multistep", "gamma": 0.1, "stepvalue": steps, "momentum": 0.9,
         "weight_decay": weight_decay, "max_iter": max_iter},
        {"test_iter": test_iter, "test_interval": max_iter // 20, "display": 100},
        snapshots("baseline", max_iter // 10, seed=1)])


# -- ImageNet ---------------------------------------------------------------------------------------------------------

IMAGENET_TESTS = testing(5000)
#: GReg's and SFP's images an iteration: 256, of which the nets read 16 at a time.
LARGE_BATCH: Settings = {"base_lr": 0.01, "lr_policy": "fixed", "momentum": 0.9, "weight_decay": 0.0001, "iter_size": 16,
                         "max_iter": 10000000}
#: Retraining: as long as the accuracy rises.
IMAGENET_RETRAINING: Settings = {"acc_borderline": -1, "losseval_interval": 5000, "retrain_test_interval": 5000}
GREG: Settings = {"greg_param": {"lr_prune": 0.001, "update_reg_interval": 5, "stabilize_reg_interval": 40000}}
#: Iterations in which 256 images a time are all of ILSVRC-12's.
EPOCH = 5005


def incregs(net: str, what: str, speedup: float | None, passes: Settings = PASSES) -> str:
    """IncReg over columns, with the settings of the reference's ImageNet experiments."""
    aim = {"speedup": speedup} if speedup else {}
    return solver(f"IncReg over columns prunes {what}, with the reference's settings. Start it from trained weights.", net, [
        REFERENCE, {**INCREG, **aim}, passes, SCHEDULE, IMAGENET_TESTS, snapshots("pruned")])


def spatial(net: str, what: str, layers: Settings) -> str:
    """IncReg over kernel positions: half of them, in layers whose kernels are larger than a pixel."""
    return solver(f"IncReg over kernel positions prunes {what}, with the reference's settings. Start it from trained weights.",
                  net, [REFERENCE, SPATIAL, layers, PASSES, SCHEDULE, IMAGENET_TESTS, snapshots("pruned")])


def greg(method: str, what: str, layers: Settings) -> str:
    """GReg-1 or GReg-2 over filters, with the settings of the authors' code."""
    return solver(f"{method} over filters prunes {what}, with the authors' settings. Start it from trained weights.", NET, [
        LARGE_BATCH, {"prune_method": f"{method}_Row"}, layers, GREG, IMAGENET_RETRAINING, IMAGENET_TESTS,
        snapshots("pruned", 5000)])


def soft(method: str, what: str, share: float, layers: str = "*_branch2[ab]") -> str:
    """SFP and its kin over filters, for 100 epochs."""
    return solver(f"{method} prunes {100 * share:.0f} % of the filters of {what}. Start it from trained weights.", NET, [
        {**LARGE_BATCH, "lr_policy": "step", "gamma": 0.1, "stepsize": 30 * EPOCH}, {"prune_method": f"{method}_Row"},
        ratios(**{layers: share}), {"soft_prune_param": {"epoch": EPOCH, "epochs": 100}}, IMAGENET_RETRAINING, IMAGENET_TESTS,
        snapshots("pruned", 5000)])


@EXPERIMENTS.add("vgg16")
def vgg16() -> Files:
    """IncReg over columns, and over kernel positions. deploy.prototxt is the published net's."""
    return {NET: pruning.vgg16_train_val(),
            "solver.prototxt": incregs(NET, "VGG-16", 5.0),
            "solver_RegSpa_Col.prototxt": spatial(NET, "VGG-16", ratios(follow=False, **{"conv[1-5]_*": 0.5, "conv1_1": 0.0}))}


#: GReg's ratios: of the convolutions 2a and 2b in each stage.
RESNET50_GREG = {"1.49x": (0.3, 0.3, 0.3, 0.14), "2.31x": (0.6, 0.6, 0.6, 0.21), "2.56x": (0.74, 0.74, 0.6, 0.21),
                 "3.06x": (0.68, 0.68, 0.68, 0.5)}


@EXPERIMENTS.add("resnet50")
def resnet50() -> Files:
    """IncReg over columns and kernel positions, GReg at four speedups, SFP. deploy.prototxt is the published net's."""
    files = {NET: pruning.resnet50_train_val(),
             "solver.prototxt": incregs(NET, "ResNet-50", 2.0),
             "solver_RegSpa_Col.prototxt": spatial(NET, "ResNet-50", ratios(follow=False, conv1=0.5, **{"*_branch2b": 0.5})),
             "solver_SFP_Row.prototxt": soft("SFP", "ResNet-50", 0.3)}
    for speedup, shares in RESNET50_GREG.items():
        layers = ratios(**{f"res{stage}?_branch2[ab]": share for stage, share in enumerate(shares, start=2)})
        for method in ("GReg1", "GReg2"):
            files[f"solver_{method}_Row_{speedup}.prototxt"] = greg(method, f"ResNet-50 to {speedup}", layers)
    return files


@EXPERIMENTS.add("resnet34")
def resnet34() -> Files:
    """GReg, and SFP with its kin."""
    greg_ratios = ratios(**{"res2[bc]_branch2a": 0.5, "res3[bc]_branch2a": 0.6, "res4[b-e]_branch2a": 0.4})
    soft_shares = {"SFP": 0.3, "ASFP": 0.3, "SRFP": 0.4, "ASRFP": 0.4}
    return {NET: pruning.resnet34_train_val(),
            "deploy.prototxt": deploy_text("ResNet-34", 224, partial(resnet.basic_body, depth=34, classes=1000)),
            "solver.prototxt": greg("GReg1", "ResNet-34 to 1.32x", greg_ratios),
            "solver_GReg2_Row.prototxt": greg("GReg2", "ResNet-34 to 1.32x", greg_ratios),
            **{f"solver_{method}_Row.prototxt": soft(method, "ResNet-34", share, "*_branch2a")
               for method, share in soft_shares.items()}}


#: The net has another name than usual: train_val.prototxt in the same folder is AlexNet's as published.
ALEXNET_NET = "train_val_pruning.prototxt"


@EXPERIMENTS.add("alexnet")
def alexnet_files() -> Files:
    """IncReg over columns. deploy.prototxt is the published net's."""
    return {ALEXNET_NET: pruning.alexnet_train_val(),
            "solver.prototxt": incregs(ALEXNET_NET, "AlexNet", 5.0)}


# -- CIFAR ------------------------------------------------------------------------------------------------------------

CIFAR_TESTS = testing(100)
CIFAR_SCHEDULE: Settings = {"acc_borderline": -1, "losseval_interval": 2000, "retrain_test_interval": 500}
CONVNET: Settings = {"base_lr": 0.0005, "lr_policy": "fixed", "momentum": 0.9, "weight_decay": 0.002, "max_iter": 10000000}
#: Filters ranked over the whole net, pruned in three rounds.
ROUNDS: Settings = {"iter": 2000, "interval": 2000, "rounds": 3}
#: What each method needs for the convnet, and the unit it prunes it by.
CONVNET_METHODS: dict[str, Settings] = {
    "Reg_Row": {"AA": 0.001, "target_reg": 1.0},
    "RegSpa_Col": {"AA": 0.001, "target_reg": 1.0},
    "AFP_Row": {"afp_param": {"alpha": 0.001, "prune_iter": 10000}},
    "GReg1_Row": {"greg_param": {"lr_prune": 0.0005, "update_reg_interval": 5, "stabilize_reg_interval": 5000}},
    "GReg2_Row": {"greg_param": {"lr_prune": 0.0005, "update_reg_interval": 5, "stabilize_reg_interval": 5000}},
    "SFP_Row": {"soft_prune_param": {"epoch": 500, "epochs": 20}},
    "ASFP_Row": {"soft_prune_param": {"epoch": 500, "epochs": 20}},
    "SRFP_Row": {"soft_prune_param": {"epoch": 500, "epochs": 20}},
    "ASRFP_Row": {"soft_prune_param": {"epoch": 500, "epochs": 20}},
    "DSA_Row": {"dsa_param": {"iterations": 10000}},
    "OrthoReg_Row": {"orthoreg_param": {"finetune": 1000, "rank_param": ROUNDS}},
    **{f"{method}_Row": {"rank_param": ROUNDS} for method in ("GlobalL1", "GlobalL2", "Fisher", "GraSP", "RD")},
    "L1_Col": {}, "L1_Row": {}, "L2_Col": {}, "L2_Row": {}, "Random_Col": {}, "Random_Row": {}, "Largest_Col": {},
    "Largest_Row": {},
}


@EXPERIMENTS.add("convnet")
def convnet() -> Files:
    """Every method at a speedup of 4, with the same retraining."""
    def pruned(method: str, settings: Settings) -> str:
        return solver(f"{method} prunes the convnet to a speedup of 4. Start it from trained weights.", NET, [
            CONVNET, {"prune_method": method, **settings}, target(4.0), CIFAR_SCHEDULE, CIFAR_TESTS,
            snapshots("pruned", 1000, seed=1)])

    return {NET: pruning.convnet_train_val(),
            "deploy.prototxt": deploy_text("CIFAR10_full", 32, cifar10.full_body),
            "solver_baseline.prototxt": baseline(
                "Trains the convnet, with the rates of Caffe's three solvers one after the other.", 0.001, 0.004,
                [60000, 65000], 70000, 100),
            "solver.prototxt": pruned("Reg_Col", {"AA": 0.001, "target_reg": 1.0}),
            **{f"solver_{method}.prototxt": pruned(method, settings) for method, settings in CONVNET_METHODS.items()}}


def cifar_greg(method: str, what: str, layers: Settings) -> str:
    """GReg with the authors' settings for CIFAR; or a one-shot method with the same retraining."""
    settings = {"greg_param": {"lr_prune": 0.001, "update_reg_interval": 10, "stabilize_reg_interval": 10000}}
    return solver(f"{method} prunes {what}, with GReg's settings. Start it from trained weights.", NET, [
        {"base_lr": 0.01, "lr_policy": "fixed", "momentum": 0.9, "weight_decay": 0.0005, "max_iter": 10000000},
        {"prune_method": method}, layers, settings if method.startswith("GReg") else {}, CIFAR_SCHEDULE, CIFAR_TESTS,
        snapshots("pruned", 2000, seed=1)])


@EXPERIMENTS.add("resnet56")
def resnet56() -> Files:
    """GReg at 2.55x, one-shot L1 with the same ratios, and IncReg over columns at 2x."""
    layers = ratios(**{"res1?_branch2a": 0.75, "res2?_branch2a": 0.75, "res3?_branch2a": 0.32})
    return {NET: pruning.resnet56_train_val(),
            "deploy.prototxt": deploy_text("ResNet-56", 32, partial(resnet.basic_body, depth=56, classes=10)),
            "solver_baseline.prototxt": baseline("Trains ResNet-56: 200 epochs of 391 iterations.", 0.1, 0.0005,
                                                 [39100, 58650], 78200, 100),
            "solver.prototxt": solver(
                "IncReg over columns prunes ResNet-56 to 2x. Start it from trained weights.", NET, [
                    {"base_lr": 0.005, "lr_policy": "fixed", "momentum": 0.9, "weight_decay": 0.00025, "max_iter": 10000000},
                    {**INCREG, "speedup": 2.0}, CIFAR_SCHEDULE, CIFAR_TESTS, snapshots("pruned", 2000, seed=1)]),
            **{f"solver_{method}.prototxt": cifar_greg(method, "ResNet-56", layers)
               for method in ("GReg1_Row", "GReg2_Row", "L1_Row")}}


@EXPERIMENTS.add("vgg19")
def vgg19() -> Files:
    """GReg at 8.84x, one-shot L1 with the same ratios; and half of all filters by rankings that need, or like, BatchNorm."""
    def ranked(method: str, settings: Settings) -> str:
        return solver(f"{method} prunes half of VGG-19's filters. Start it from trained weights.", NET, [
            {"base_lr": 0.01, "lr_policy": "fixed", "momentum": 0.9, "weight_decay": 0.0005, "max_iter": 10000000},
            {"prune_method": f"{method}_Row", **settings}, ratios(**{"conv*": 0.5}), CIFAR_SCHEDULE, CIFAR_TESTS,
            snapshots("pruned", 2000, seed=1)])

    layers = ratios(**{"conv*": 0.7, "conv1_1": 0.0})
    return {NET: pruning.vgg19_train_val(),
            "deploy.prototxt": deploy_text("VGG-19", 32, partial(vgg.cifar_body, classes=100)),
            "solver_baseline.prototxt": baseline("Trains VGG-19: 200 epochs of 196 iterations.", 0.1, 0.0005,
                                                 [19600, 29400], 39200, 100),
            "solver.prototxt": cifar_greg("GReg1_Row", "VGG-19", layers),
            **{f"solver_{method}.prototxt": cifar_greg(method, "VGG-19", layers) for method in ("GReg2_Row", "L1_Row")},
            "solver_OrthoReg_Row.prototxt": ranked("OrthoReg", {"orthoreg_param": {"finetune": 1000, "rank_param": ROUNDS}}),
            **{f"solver_{method}_Row.prototxt": ranked(method, {"rank_param": ROUNDS}) for method in ("BNScale", "Taylor")}}
