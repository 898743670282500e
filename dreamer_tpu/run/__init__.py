"""Run scripts, one per value of the option `script`."""
