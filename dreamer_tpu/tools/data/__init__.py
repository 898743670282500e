"""Import of recorded episodes into a logdir, and export of its replay."""
