"""The helpers of the `caffe` Python module, under their names."""
