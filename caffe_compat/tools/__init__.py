"""The commands of `caffe-compat`, a module each: HELP, add_arguments(parser) and run(args).

Those that print tables set QUIET and show only warnings beside them."""
