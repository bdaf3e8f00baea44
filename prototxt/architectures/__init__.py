"""Published architectures, written with NetSpec: names, shapes and settings are those of the published definitions.

`DEPLOY` and `TRAIN_VAL` hold, by the name of the folder `prototxt/<name>/`, the functions that make the NetParameter
of `deploy.prototxt` (an Input layer, and class probabilities or scores) and of `train_val.prototxt` (data, loss and
accuracy), `EXPERIMENTS` those of the files of pruning experiments.
`python -m prototxt.architectures`, run at the top of the repository, writes the files.
"""

from . import alexnet, cifar10, experiments, googlenet, lenet, mobilenet, resnet, squeezenet, vgg  # noqa: F401  (they register)
from .parts import DEPLOY, TRAIN_VAL
from .pruning import EXPERIMENTS

#: Too long to read: generated on demand, `python -m prototxt.architectures resnet101`.
NOT_KEPT = ("resnet101", "resnet152")

__all__ = ["DEPLOY", "EXPERIMENTS", "NOT_KEPT", "TRAIN_VAL"]
