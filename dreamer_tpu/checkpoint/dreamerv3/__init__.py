"""Import of checkpoints of the public DreamerV3 implementation."""
