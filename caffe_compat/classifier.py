"""pycaffe's `caffe.classifier`: the module `caffe_compat.pycaffe.classifier` itself."""

import sys

from caffe_compat.pycaffe import classifier

sys.modules[__name__] = classifier
