"""Meshes, rules and arrays over many devices."""
