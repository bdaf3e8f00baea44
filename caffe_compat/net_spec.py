"""pycaffe's `caffe.net_spec`: the module `caffe_compat.pycaffe.net_spec` itself."""

import sys

from caffe_compat.pycaffe import net_spec

sys.modules[__name__] = net_spec
