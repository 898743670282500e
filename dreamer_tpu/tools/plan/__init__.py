"""Compiles an update ahead of time for a TPU topology and reports its cost."""
