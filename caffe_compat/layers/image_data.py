"""ImageData reads the images of a list; WindowData reads windows of images, as R-CNN trains on."""

from __future__ import annotations

import logging

from ..db.batches import Batches, ImageBatches
from ..db.image_list import ListItems
from ..db.transform import Transformer
from ..db.windows import WindowBatches, read_windows
from ..trust import check_readable
from .base import layer
from .data import ReadingLayer, draw_seed

log = logging.getLogger(__name__)


@layer("ImageData", bottoms=0, tops=2, param="image_data_param", source=True)
class ImageData(ReadingLayer):
    """Images named in a list of `path label` lines, and the labels (ImageDataParameter, TransformationParameter).

    `root_folder` comes before every path as it is, so it should end in a slash. With `shuffle` every pass over the list
    has another order; `rand_skip` starts at a random one of the first so many images, or of all if there are fewer
    (where Caffe stops in some runs).
    """

    def open(self) -> Batches:
        param, batch_size = self.param, self.batch_size()
        if bool(param.new_height) != bool(param.new_width):
            raise self.error(f"new_height is {param.new_height} and new_width is {param.new_width}; set both or none")
        transformer = Transformer(self.spec.transform_param, self.training, self.where)
        size = (param.new_height, param.new_width) if param.new_height else None
        seed = draw_seed(self) if param.shuffle or param.rand_skip or transformer.is_random else 0
        items = ListItems(param.source, param.root_folder, param.is_color, size, param.shuffle, param.rand_skip, seed,
                          self.where)
        return ImageBatches(items, transformer, batch_size, True, seed)


@layer("WindowData", bottoms=0, tops=2, param="window_data_param", source=True)
class WindowData(ReadingLayer):
    """Random windows of images, warped to `crop_size`, and their classes (WindowDataParameter).

    `fg_fraction` of a batch are windows of objects, its last ones, the rest background. `crop_size`, `mirror` and the
    mean are those of transform_param, but, as in Caffe, `scale` is WindowDataParameter's own.
    """

    dynamic = False

    def open(self) -> Batches:
        param, transform = self.param, self.spec.transform_param
        self.batch_size()
        if not transform.crop_size or 2 * param.context_pad >= transform.crop_size:
            raise self.error(f"crop_size is {transform.crop_size} and context_pad is {param.context_pad}; crop_size "
                             "must be set in transform_param and be more than twice context_pad")
        if transform.HasField("scale"):
            log.warning("%s: WindowData does not use transform_param.scale; set window_data_param.scale", self.where)
        windows = read_windows(param.source, param.root_folder, param.fg_threshold, param.bg_threshold)
        for path in windows.paths:
            check_readable(path, self.where)
        transformer = Transformer(transform, self.training, self.where)
        return WindowBatches(windows, param, transformer, draw_seed(self), self.where)
