"""Environments of the stand-in."""
