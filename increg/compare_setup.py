"""What `increg compare` runs: an experiment made from another one, with its data in memory and a solver for each case.

The images are written as HDF5, transformed as the net's Data layers would do it, so that many processes can read them
without decoding anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from caffe_compat import proto
from caffe_compat.errors import CaffeError, NetError

from .datasets import DATASETS, check_source
from .experiments import BASELINE_SOLVER, DEPLOY, MAIN_SOLVER, SETTINGS, Experiment, Quick
from .quick import hurry_solver

#: Images of a batch when testing: few large passes are faster.
TEST_BATCH = 500
#: The stage of the net that tests while pruning, if it tests fewer images than there are.
JUDGE = "judge"
PHASES = {0: "train", 1: "test"}


def make_data(experiment: Experiment, source: str | None, folder: Path) -> None:
    """Writes `train.h5` and `test.h5`, and the lists of files that HDF5Data reads, into `folder`; leaves alone what is
    there. Raises `DataError` for a source that lacks something, `NetError` for what cannot be done once and for all."""
    dataset = DATASETS.get(experiment.data)
    if dataset.read is None:
        raise CaffeError(f"{experiment.name}: its data set, {experiment.data}, is not one that is kept in memory; there are "
                         f"{', '.join(name for name in DATASETS.names() if DATASETS.get(name).read)}")
    folder.mkdir(parents=True, exist_ok=True)
    if all((folder / f"{phase}.txt").exists() for phase in PHASES.values()):
        return
    check_source(experiment.data, source)
    transforms = _transforms(experiment)
    mean: np.ndarray | None = None
    for phase, items in dataset.read(Path(source or ".")).items():
        images, labels = zip(*items)
        pixels = np.stack(images).astype(np.float32)
        transform = transforms[phase]
        if transform.mean_file:
            mean = pixels.mean(0, dtype=np.float64).astype(np.float32) if mean is None else mean  # of the training images
            pixels -= mean
        elif transform.mean_value:
            pixels -= np.array(transform.mean_value, np.float32)[:, None, None]
        pixels *= np.float32(transform.scale)
        with proto.replacing(folder / f"{phase}.h5") as temporary, h5py.File(temporary, "w") as file:
            file["data"], file["label"] = pixels, np.array(labels, np.float32)
        (folder / f"{phase}.txt").write_text(f"{(folder / f'{phase}.h5').resolve()}\n")


def _transforms(experiment: Experiment) -> dict[str, Any]:
    """The transform_param of the net's Data layer in each phase."""
    net = proto.read_text(experiment.folder / _net(experiment), "NetParameter").message
    found = {}
    for layer in net.layer:
        if layer.type == "Data":
            if layer.transform_param.mirror or layer.transform_param.crop_size:
                raise NetError(f"{experiment.name}: layer {layer.name} mirrors or crops its images, differently each time; "
                               "increg compare stores them as the net reads them, so it takes nets that do neither")
            found[PHASES[layer.include[0].phase]] = layer.transform_param
    return found


def _net(experiment: Experiment) -> str:
    return proto.read_text(experiment.folder / MAIN_SOLVER, "SolverParameter").message.net


def make_experiment(experiment: Experiment, data: Path, folder: Path, iterations: int, speedups: list[float], *,
                    shorten: int | None = None, judges: int | None = None) -> None:
    """Writes the experiment to run into `folder`: its net reads from `data`; there is a solver `<METHOD>_<speedup>x` for
    each method and speedup; training takes `iterations`; pruning and retraining are shortened in proportion, or `shorten`
    times. Of the test images about `judges`, evenly spread, judge retraining; all of them judge what comes of it.

    So that shorter pruning pushes weights as far, penalties are larger in the same proportion (`Quick.strength`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(data / "test.h5") as file:
        images = len(file["label"])
    test_batch = min(TEST_BATCH, images)
    tests = images // test_batch
    judge = _Judge(folder / "judge.txt", max(1, judges // tests)) if judges and judges < images else None
    if judge:
        _make_judge(data, judge, tests)
    proto.write_text(folder / "train_val.prototxt", _net_in_memory(experiment, data, test_batch, judge))
    (folder / DEPLOY).write_text((experiment.folder / DEPLOY).read_text())
    baseline = proto.read_text(experiment.folder / BASELINE_SOLVER, "SolverParameter").message
    factor = max(1, round(baseline.max_iter / iterations))
    _write_solver(folder / BASELINE_SOLVER, baseline, Quick(factor=factor), tests)
    factor = shorten or factor
    quick = Quick(factor=factor, strength=factor)
    methods = experiment.methods()
    for method, path in methods.items():
        for speedup in speedups:
            message = proto.read_text(path, "SolverParameter").message
            message.ClearField("prune_ratios")
            message.prune_target.speedup = speedup
            if judge:
                message.test_state.add().stage.append(JUDGE)
            _write_solver(folder / f"solver_{case(method, speedup)}.prototxt", message, quick, tests)
    first = case(experiment.main_method(), speedups[0])
    (folder / MAIN_SOLVER).write_text((folder / f"solver_{first}.prototxt").read_text())
    (folder / SETTINGS).write_text(f'title = "{experiment.title}, many runs"\ndata = "none"\nthreads = 1\n')


@dataclass(frozen=True)
class _Judge:
    """The images that retraining is judged by: the list of their file, and how many are tested at a time."""

    source: Path
    batch: int


def _make_judge(data: Path, judge: _Judge, tests: int) -> None:
    """Writes `tests` batches of test images, evenly spread over all of them, for the data may be in order of their classes."""
    with h5py.File(data / "test.h5") as file:
        chosen = np.linspace(0, len(file["label"]) - 1, tests * judge.batch).astype(int)
        pixels, labels = file["data"][()][chosen], file["label"][()][chosen]
    path = judge.source.with_suffix(".h5")
    with proto.replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file["data"], file["label"] = pixels, labels
    judge.source.write_text(f"{path.resolve()}\n")


def _net_in_memory(experiment: Experiment, data: Path, test_batch: int, judge: _Judge | None) -> Any:
    """The experiment's NetParameter, reading from `data`, and from the judge's file in the stage JUDGE. It prunes by a target,
    so layers say no ratios."""
    net = proto.read_text(experiment.folder / _net(experiment), "NetParameter", proto.INCREG).message
    layers = []
    for layer in net.layer:
        layers.append(layer)
        if layer.HasField("prune_param"):
            layer.prune_param.ClearField("prune_ratio")
        if layer.type == "Data":
            phase = PHASES[layer.include[0].phase]
            batch = test_batch if phase == "test" else layer.data_param.batch_size
            layer.type = "HDF5Data"
            layer.hdf5_data_param.source = str((data / f"{phase}.txt").resolve())
            layer.hdf5_data_param.batch_size, layer.hdf5_data_param.shuffle = batch, phase == "train"
            layer.ClearField("data_param")
            layer.ClearField("transform_param")
            if phase == "test" and judge:
                layers.append(_judging(layer, judge))
                layer.include[0].not_stage.append(JUDGE)
    result = type(net)()
    result.CopyFrom(net)
    del result.layer[:]
    result.layer.extend(layers)
    return result


def _judging(layer: Any, judge: _Judge) -> Any:
    """The data layer of the tests that judge: as many batches, so that the same test_iter serves both."""
    message = type(layer)()
    message.CopyFrom(layer)
    message.include[0].stage.append(JUDGE)
    message.hdf5_data_param.source, message.hdf5_data_param.batch_size = str(judge.source.resolve()), judge.batch
    return message


def _write_solver(path: Path, message: Any, quick: Quick, tests: int) -> None:
    hurry_solver(message, quick)
    message.net = "train_val.prototxt"
    message.test_iter[:] = [tests]
    message.display, message.test_initialization = 0, False
    message.snapshot = 0 if message.max_iter < 10 ** 6 else 1000
    proto.write_text(path, message)


def case(method: str, speedup: float) -> str:
    """The name of a method at a speedup."""
    return f"{method}_{speedup:g}x"
