"""Registers the environment that counts and fails on request, for processes."""

import gymnasium

from tests.helpers.sample_envs import Counter

gymnasium.register('Counter-v0', Counter)
