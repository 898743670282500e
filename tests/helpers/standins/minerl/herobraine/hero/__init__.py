"""Handlers, constants and spaces of the stand-in."""
