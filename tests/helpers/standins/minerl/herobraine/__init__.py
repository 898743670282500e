"""Specification of environments of the stand-in."""
