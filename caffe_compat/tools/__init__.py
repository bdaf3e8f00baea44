"""The commands of `caffe-compat`, a module each: HELP, add_arguments(parser) and run(args)."""
