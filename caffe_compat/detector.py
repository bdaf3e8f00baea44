"""pycaffe's `caffe.detector`: the module `caffe_compat.pycaffe.detector` itself."""

import sys

from caffe_compat.pycaffe import detector

sys.modules[__name__] = detector
