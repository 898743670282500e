"""Ahead-of-time compilation of an update for a TPU topology."""
