"""All options with their defaults. Suites and presets change only values.

Durations are in seconds. Steps are agent steps, summed over all hosts. Names
follow the public implementation of DreamerV3 where it has the same option.
"""

from typing import Any

import ml_collections


def base() -> ml_collections.ConfigDict:
  """Returns the complete configuration that suites start from."""
  return ml_collections.ConfigDict(
    dict(
      task='dmc_walker_walk',
      seed=0,
      script='train',
      batch_size=16,
      batch_length=64,
      report_length=32,
      consec_train=1,
      consec_report=1,
      replay_context=1,
      run=_run(),
      replay=_replay(),
      agent=_agent(),
      policy=_policy(),
      distributed=_distributed(),
      mesh=dict(data=-1, fsdp=1, model=1),
      sharding=dict(rules=_rules()),
      dtype=dict(compute='auto', param='float32'),
      checkpoint=_checkpoint(),
      metrics=dict(outputs=('log', 'jsonl', 'tensorboard')),
      env=_env(),
    )
  )


def _run() -> dict[str, Any]:
  """Returns the options of the run itself.

  Intervals (`*_every`) are in seconds; 0 disables, negative means every update.

  updates: If positive, trains offline on the replay in the logdir, up to this
    total number of updates, without acting.
  profile: Range of updates to trace, such as '100:120'.
  """
  return dict(
    steps=10_000_000_000,
    updates=0,
    train_ratio=32.0,
    envs=16,
    eval_envs=4,
    eval_eps=8,
    log_every=120.0,
    report_every=300.0,
    save_every=900.0,
    report_batches=1,
    report_grads=False,
    profile='',
    from_checkpoint='',
    from_checkpoint_regex='.*',
  )


def _checkpoint() -> dict[str, Any]:
  """Returns the options for retention of checkpoints.

  keep: Number of newest checkpoints to keep, with their replay.
  keep_every: Also keeps one agent, without replay, per this many steps; 0
    disables.
  keep_best: Also keeps this many agents with the highest evaluation scores; 0
    disables.
  timeout: Seconds that hosts wait for each other when saving.
  """
  return dict(keep=2, keep_every=0, keep_best=1, timeout=600.0)


def _policy() -> dict[str, Any]:
  """Returns the options for acting.

  device: 'shared' with the learner, 'reserved' (one device per host that does
    not learn) or 'cpu'.
  mode, eval_mode: 'sample' or 'mode' of the policy, or 'random' actions.
  publish_every: Updates between transfers of new weights to the policy.
  """
  return dict(device='shared', mode='sample', eval_mode='mode', publish_every=1)


def _distributed() -> dict[str, Any]:
  """Returns the options for several hosts; see `dreamer_tpu.hosts`.

  enabled: 'auto' joins other hosts on TPU VMs and if a coordinator is given.
  timeout: Seconds for all hosts to join, and to leave.
  silence: Seconds without a heartbeat after which a host counts as dead.
  env_timeout: Seconds for one step of the environments.
  """
  return dict(
    enabled='auto',
    coordinator_address='',
    num_processes=-1,
    process_id=-1,
    timeout=300.0,
    silence=20.0,
    env_timeout=40.0,
  )


def _replay() -> dict[str, Any]:
  """Returns the options of the replay.

  fracs: Shares of the samples by sampling method; they add up to 1.
  prio: Priorities are the world model's losses to the power of `exponent`. A
    sequence has `maxfrac` times the maximum of its steps plus `1 - maxfrac`
    times their mean.
  recexp: Recency sampling weights a sequence by 1 / age^recexp.
  """
  return dict(
    size=5_000_000,
    online=True,
    chunksize=1024,
    fracs=dict(uniform=1.0, priority=0.0, recency=0.0),
    prio=dict(
      exponent=0.8, maxfrac=0.5, initial=float('inf'), zero_on_sample=True
    ),
    recexp=1.0,
  )


def _agent() -> dict[str, Any]:
  """Returns the options of the agent: size200m, constants of Table 4.

  remat: Rematerializes the image encoder and decoder in the backward pass,
    which saves memory.
  """
  units = 1024
  return dict(
    rssm=dict(
      deter=8192,
      hidden=1024,
      stoch=32,
      classes=64,
      blocks=8,
      dyn_layers=1,
      prior_layers=2,
      post_layers=1,
      unimix=0.01,
      free_nats=1.0,
    ),
    encoder=dict(depth=64, mults=(2, 3, 4, 4), kernel=5, units=units, layers=3),
    decoder=dict(
      depth=64, mults=(2, 3, 4, 4), kernel=5, units=units, layers=3, blocks=8
    ),
    reward=dict(units=units, layers=1, bins=255, outscale=0.0),
    cont=dict(units=units, layers=1, outscale=1.0),
    policy=dict(
      units=units, layers=3, minstd=0.1, maxstd=1.0, unimix=0.0, outscale=0.01
    ),
    value=dict(units=units, layers=3, bins=255, outscale=0.0),
    slow_value=dict(rate=0.02, target=False),
    loss_scales=dict(
      decoder=1.0,
      reward=1.0,
      cont=1.0,
      dyn=1.0,
      rep=0.1,
      policy=1.0,
      value=1.0,
      repval=0.3,
    ),
    remat=False,
    imag_length=15,
    horizon=333,
    lam=0.95,
    entropy=3e-4,
    retnorm=dict(rate=0.01, limit=1.0, low=5.0, high=95.0),
    opt=dict(
      lr=4e-5,
      agc=0.3,
      beta2=0.999,
      eps=1e-20,
      momentum=0.9,
      warmup=1000,
      schedule='constant',
      decay_steps=0,
      weight_decay=0.0,
    ),
  )


def _rules() -> dict[str, str]:
  """Returns the mesh axis over which each logical axis is split.

  An axis stays whole if it does not divide or if the mesh axis is taken.
  """
  return dict(
    blocks='model',
    block_units='model',
    units='model',
    stoch='model',
    features='fsdp',
  )


def _env() -> dict[str, Any]:
  """Returns the options of the environments, one group per suite.

  stepping: 'workers' (a process per environment), 'serial' (one after another
    in this process) or 'auto' (workers, unless steps are cheap). Atari has its
    own threads.
  size: Height and width of images.
  actions: 'all' 18 Atari actions, or the 'minimal' set of a game.
  length: Limit of an episode, in frames (Crafter: in steps); 0 disables.
  """
  return dict(
    stepping='auto',
    atari=dict(
      size=(96, 96),
      repeat=4,
      sticky=0.25,
      gray=True,
      actions='all',
      noops=30,
      pool=2,
      length=108000,
    ),
    dmc=dict(repeat=1, size=(64, 64), image=False, proprio=True, camera=-1),
    crafter=dict(size=(64, 64), length=10000),
    gym=dict(size=(64, 64), repeat=1, length=0),
  )
