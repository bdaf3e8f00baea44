"""pycaffe's `caffe.draw`: the module `caffe_compat.pycaffe.draw` itself."""

import sys

from caffe_compat.pycaffe import draw

sys.modules[__name__] = draw
