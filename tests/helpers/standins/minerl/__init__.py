"""A stand-in for MineRL 0.4.4.

Reproduces what the suite uses of its documentation and code: `EnvSpec` with the
methods to override and its order of calls, handlers with their spaces and
commands, `mc` with a part of the items, spaces (`Enum` of names), and the
environment with old gym's calls, `seed` before `reset`, errors after the end of
an episode, and a lost connection. The world is a toy; see `world`.
"""
