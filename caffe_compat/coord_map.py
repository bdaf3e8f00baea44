"""pycaffe's `caffe.coord_map`: the module `caffe_compat.pycaffe.coord_map` itself."""

import sys

from caffe_compat.pycaffe import coord_map

sys.modules[__name__] = coord_map
