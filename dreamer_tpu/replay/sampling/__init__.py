"""Distributions over sequence starts."""
