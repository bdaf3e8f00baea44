"""pycaffe's `caffe.io`: the module `caffe_compat.pycaffe.io` itself."""

import sys

from caffe_compat.pycaffe import io

sys.modules[__name__] = io
