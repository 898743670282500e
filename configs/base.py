"""All options with their defaults. Suites and presets change only values.

The comment above a key is its description in `main.py --help`, with the unit
in brackets. Steps are agent steps, summed over all hosts. Names follow the
public implementation of DreamerV3 where it has the same option.
"""

from typing import Any

import ml_collections


def base() -> ml_collections.ConfigDict:
  """Returns the complete configuration that suites start from."""
  return ml_collections.ConfigDict(
    dict(
      # Task, as SUITE_NAME. `python -m dreamer_tpu.tools.suites` lists them.
      task='dmc_walker_walk',
      # Seed of the agent, the environments and the replay.
      seed=0,
      # Script: training, training with evaluations, evaluation of a trained
      # agent, or training with the actor in a thread of its own.
      script='train',
      # [sequences] Sequences per update, over all hosts.
      batch_size=16,
      # [steps] Length of the sequences of an update.
      batch_length=64,
      # [steps] Length of the sequences of a report.
      report_length=32,
      # Batches in a row that continue the same sequences in updates.
      consec_train=1,
      # Batches in a row that continue the same sequences in reports.
      consec_report=1,
      # [steps] Steps before each sequence, whose stored latents start it; 0
      # starts from zeros.
      replay_context=1,
      # The run itself. Intervals (`*_every`): 0 disables, and negative means
      # every update.
      run=_run(),
      # Replay of past experience.
      replay=_replay(),
      # World model, actor and critic. The defaults are size200m with the
      # constants of Table 4 of the paper.
      agent=_agent(),
      # Acting.
      policy=_policy(),
      # Joining of several hosts.
      distributed=_distributed(),
      # Mesh of all devices; -1 stands for all remaining devices.
      mesh=dict(
        # [devices] Parts of the batch, with a copy of the parameters each.
        data=-1,
        # [devices] Parts of the batch over which parameters are split, too.
        fsdp=1,
        # [devices] Parts of the recurrent model and of wide layers.
        model=1,
      ),
      # Splitting of parameters over the mesh.
      sharding=dict(
        # Mesh axis over which each logical axis is split; '' for none. An axis
        # stays whole if it does not divide or if the mesh axis is taken.
        rules=_rules(),
      ),
      # Types of numbers.
      dtype=dict(
        # Type of activations; auto is bfloat16 on accelerators.
        compute='auto',
        # Type of parameters.
        param='float32',
      ),
      # Retention of checkpoints.
      checkpoint=_checkpoint(),
      # Metrics.
      metrics=dict(
        # Outputs of metrics and scores.
        outputs=('log', 'jsonl', 'tensorboard'),
      ),
      # Environments, with one group per suite.
      env=_env(),
      # Settings of JAX.
      jax=dict(
        # Folder or gs://bucket/path for compiled programs, which later runs
        # load from there; 'auto' for one in the user's cache folder; 'off'.
        # JAX_COMPILATION_CACHE_DIR takes precedence.
        cache='auto',
      ),
    )
  )


def _run() -> dict[str, Any]:
  """Returns the options of the run itself."""
  return dict(
    # [steps] Length of the run.
    steps=10_000_000_000,
    # [updates] If positive, trains offline on the replay in the logdir, up to
    # this total number of updates, without acting.
    updates=0,
    # Replayed steps per step of the environments.
    train_ratio=32.0,
    # Environments per host.
    envs=16,
    # Environments per host for evaluations.
    eval_envs=4,
    # [episodes] Episodes per evaluation.
    eval_eps=8,
    # [steps] Maximum length of an episode of an evaluation; 0 for no limit.
    # Longer ones are counted apart from the scores.
    eval_length=30_000,
    # Records `render()` of evaluations where no image is observed.
    eval_video=True,
    # [seconds] Interval of metrics.
    log_every=120.0,
    # [seconds] Interval of reports: losses on other data, open-loop videos, and
    # evaluations if the script has them.
    report_every=300.0,
    # [seconds] Interval of checkpoints.
    save_every=900.0,
    # [batches] Batches per report.
    report_batches=1,
    # Adds the gradient norm of each loss term to reports.
    report_grads=False,
    # [updates] Range of updates to trace for TensorBoard's profiler, such as
    # '100:120'; '' for none.
    profile='',
    # Logdir, or checkpoint of the public implementation, whose agent a new run
    # starts from; '' for none.
    from_checkpoint='',
    # Regular expression of the parameters to load from it.
    from_checkpoint_regex='.*',
    # Treatment of parameters whose shapes differ from those in it: an error, or
    # listed and not loaded.
    from_checkpoint_mismatch='error',
  )


def _checkpoint() -> dict[str, Any]:
  """Returns the options for retention of checkpoints."""
  return dict(
    # [checkpoints] Newest checkpoints to keep, with their replay.
    keep=2,
    # [steps] Also keeps one agent, without replay, per this many steps; 0
    # disables.
    keep_every=0,
    # [agents] Also keeps the agents with the highest evaluation scores; 0
    # disables.
    keep_best=1,
    # [seconds] Maximum time that hosts wait for each other when saving.
    timeout=600.0,
  )


def _policy() -> dict[str, Any]:
  """Returns the options for acting."""
  return dict(
    # Devices that act: those of the learner, one reserved per host that does
    # not learn, or the CPU.
    device='shared',
    # Actions in training: samples, the mode of the policy, or random actions
    # without a policy.
    mode='sample',
    # Actions in evaluations.
    eval_mode='mode',
    # [updates] Interval of the transfer of new weights to the policy.
    publish_every=1,
  )


def _distributed() -> dict[str, Any]:
  """Returns the options for several hosts; see `dreamer_tpu.hosts`."""
  return dict(
    # Joining of other hosts; auto joins on TPU VMs and if a coordinator is
    # given.
    enabled='auto',
    # HOST:PORT of process 0; '' where JAX finds it by itself.
    coordinator_address='',
    # [processes] Number of processes; -1 where JAX finds it by itself.
    num_processes=-1,
    # Number of this process, from 0; -1 where JAX finds it by itself.
    process_id=-1,
    # Port of process 0 for heartbeats; 0 for the one after the coordinator's.
    heartbeat_port=0,
    # [seconds] Maximum time for all hosts to join, and to leave.
    timeout=300.0,
    # [seconds] Time without a heartbeat after which a host counts as dead.
    silence=20.0,
  )


def _replay() -> dict[str, Any]:
  """Returns the options of the replay."""
  return dict(
    # [steps] Capacity over all hosts.
    size=5_000_000,
    # Samples every new sequence once, as soon as possible.
    online=True,
    # [steps] Steps per file.
    chunksize=1024,
    # Shares of the samples by sampling method; they add up to 1.
    fracs=dict(
      # Share of uniform samples.
      uniform=1.0,
      # Share of samples by priority.
      priority=0.0,
      # Share of samples by recency.
      recency=0.0,
    ),
    # Prioritized sampling: priorities are the world model's losses.
    prio=dict(
      # Power of the loss.
      exponent=0.8,
      # Weight of the maximum over the steps of a sequence; that of their mean
      # is the rest to 1.
      maxfrac=0.5,
      # Priority of new steps.
      initial=float('inf'),
      # Sets the priority to zero when a sequence is sampled, until its update.
      zero_on_sample=True,
    ),
    # Recency sampling weights a sequence by 1 / age^recexp.
    recexp=1.0,
    # Share of every batch drawn from imported steps, which are then kept when
    # the replay is full. 0 treats them as all others.
    keep_imported=0.0,
  )


def _agent() -> dict[str, Any]:
  """Returns the options of the agent: size200m, constants of Table 4."""
  units = 1024
  return dict(
    # Recurrent state-space model.
    rssm=dict(
      # [units] Width of the deterministic state.
      deter=8192,
      # [units] Width of the layers.
      hidden=1024,
      # Categorical variables of the stochastic state.
      stoch=32,
      # Classes of each of them.
      classes=64,
      # Blocks of the recurrent weights.
      blocks=8,
      # Hidden layers before the recurrent cell.
      dyn_layers=1,
      # Layers of the prior.
      prior_layers=2,
      # Layers of the posterior.
      post_layers=1,
      # Share of the uniform distribution that is mixed in.
      unimix=0.01,
      # [nats] Divergence below which the two KL terms have no gradient.
      free_nats=1.0,
    ),
    # Encoder of observations.
    encoder=dict(
      # Regular expression that fully matches the keys to read. All others are
      # stored in the replay, too.
      keys='.*',
      # [channels] Channels of the image layers, before the factors.
      depth=64,
      # Factor of the channels of each image layer.
      mults=(2, 3, 4, 4),
      # [pixels] Size of the image kernels.
      kernel=5,
      # [units] Width of the layers for numbers and categories.
      units=units,
      # Layers for numbers and categories.
      layers=3,
    ),
    # Decoder of observations.
    decoder=dict(
      # Regular expression that fully matches the keys to reconstruct.
      keys='.*',
      # [channels] Channels of the image layers, before the factors.
      depth=64,
      # Factor of the channels of each image layer, in the encoder's order.
      mults=(2, 3, 4, 4),
      # [pixels] Size of the image kernels.
      kernel=5,
      # [units] Width of the layers for numbers and categories.
      units=units,
      # Layers for numbers and categories.
      layers=3,
      # Blocks of the layer from the deterministic state to images.
      blocks=8,
    ),
    # Reward head.
    reward=dict(
      # [units] Width of the layers.
      units=units,
      # Hidden layers.
      layers=1,
      # Bins of the two-hot distribution, an odd number.
      bins=255,
      # Factor of the initial output weights.
      outscale=0.0,
    ),
    # Head for the probability that the episode continues.
    cont=dict(
      # [units] Width of the layers.
      units=units,
      # Hidden layers.
      layers=1,
      # Factor of the initial output weights.
      outscale=1.0,
    ),
    # Actor.
    policy=dict(
      # [units] Width of the layers.
      units=units,
      # Hidden layers.
      layers=3,
      # Minimum standard deviation of continuous actions.
      minstd=0.1,
      # Maximum standard deviation of continuous actions.
      maxstd=1.0,
      # Share of the uniform distribution mixed into discrete actions.
      unimix=0.0,
      # Factor of the initial output weights.
      outscale=0.01,
    ),
    # Critic.
    value=dict(
      # [units] Width of the layers.
      units=units,
      # Hidden layers.
      layers=3,
      # Bins of the two-hot distribution, an odd number.
      bins=255,
      # Factor of the initial output weights.
      outscale=0.0,
    ),
    # Moving average of the critic, which regularizes it.
    slow_value=dict(
      # Weight of the new parameters per update.
      rate=0.02,
      # Takes bootstrap values from the moving average.
      target=False,
    ),
    # Factors of the loss terms.
    loss_scales=dict(
      # Reconstruction of observations.
      decoder=1.0,
      # Prediction of rewards.
      reward=1.0,
      # Prediction of continuation.
      cont=1.0,
      # Dynamics loss: the prior predicts the posterior.
      dyn=1.0,
      # Representation loss: the posterior becomes predictable.
      rep=0.1,
      # Actor.
      policy=1.0,
      # Critic on imagined trajectories.
      value=1.0,
      # Critic on replayed trajectories.
      repval=0.3,
    ),
    # Rematerializes the image encoder and decoder in the backward pass, which
    # saves memory.
    remat=False,
    # [steps] Length of imagined trajectories.
    imag_length=15,
    # [steps] Horizon of the discount, which is 1 - 1 / horizon.
    horizon=333,
    # Lambda of the returns.
    lam=0.95,
    # Factor of the entropy of the policy.
    entropy=3e-4,
    # Normalization of returns by moving percentiles.
    retnorm=dict(
      # Weight of the new percentiles per update.
      rate=0.01,
      # Minimum range of returns, to which smaller ones are not scaled up.
      limit=1.0,
      # [percent] Lower percentile.
      low=5.0,
      # [percent] Upper percentile.
      high=95.0,
    ),
    # Optimizer: LaProp with adaptive gradient clipping.
    opt=dict(
      # Learning rate after the warm-up.
      lr=4e-5,
      # Maximum norm of a gradient relative to that of its parameter.
      agc=0.3,
      # Decay of the second moment per update.
      beta2=0.999,
      # Added to the root of the second moment.
      eps=1e-20,
      # Decay of the first moment per update.
      momentum=0.9,
      # [updates] Length of the linear warm-up.
      warmup=1000,
      # Schedule of the learning rate after the warm-up.
      schedule='constant',
      # [updates] End of the schedule, warm-up included, where the rate is 0.
      decay_steps=0,
      # Decay of kernels per update, as a factor of the learning rate.
      weight_decay=0.0,
    ),
  )


def _rules() -> dict[str, str]:
  """Returns the mesh axis over which each logical axis is split."""
  return dict(
    # Blocks of the recurrent model and of the image decoder.
    blocks='model',
    # Units inside such a block.
    block_units='model',
    # Outputs of dense layers.
    units='model',
    # Variables of the stochastic state.
    stoch='model',
    # Inputs of layers.
    features='fsdp',
  )


def _env() -> dict[str, Any]:
  """Returns the options of the environments, one group per suite."""
  return dict(
    # Shows the complaints of Gymnasium's checker at the start.
    check=False,
    # Restarts of an environment that raised, hung, died or diverged, before one
    # of its episodes ends; the next failure ends the run. 0 ends it at the
    # first.
    restarts=5,
    # [seconds] Maximum time for a step or a reset, and ten times as long for a
    # start, after which an environment counts as hanging; 0 disables.
    timeout=60.0,
    # Stepping: a process per environment (workers), one after another in this
    # process (serial), or auto (workers, unless steps are cheap). Atari,
    # ProcGen, Meta-World and MyoSuite have their own threads.
    stepping='auto',
    # [steps] Steps that environments which are JAX functions take at a time, in
    # one program with the policy.
    unroll=1,
    # Regular expression of the observations that the agent sees.
    keys='.*',
    # Factor of actions without bounds; the policy acts within about one unit of
    # it.
    action_scale=1.0,
    # Atari.
    atari=dict(
      # [pixels] Height and width of images.
      size=(96, 96),
      # [frames] Repeats of each action.
      repeat=4,
      # Probability that the previous action is repeated.
      sticky=0.25,
      # Makes images gray.
      gray=True,
      # Actions: all 18, or those that the game uses.
      actions='all',
      # [frames] Maximum number of actions without effect at the start.
      noops=30,
      # [frames] Last frames of a step whose maximum is the image.
      pool=2,
      # [frames] Maximum length of an episode; 0 for no limit.
      length=108000,
      # Loss of a life: no effect, terminal without an end of the episode, or
      # the end of the episode.
      lives='unused',
      # Presses FIRE at the start.
      autostart=False,
      # Gives the sign of rewards.
      clip_reward=False,
      # Filter of images; pillow is slower and as in the public implementation.
      resize='opencv',
    ),
    # Brax.
    brax=dict(
      # [frames] Repeats of each action.
      repeat=1,
      # [frames] Maximum length of an episode; 0 for no limit.
      length=1000,
      # Arguments of the environment as a JSON object, such as
      # '{"backend": "spring"}'.
      kwargs='{}',
    ),
    # BSuite.
    bsuite=dict(
      # Folder for the logs that scores are computed from, one folder per
      # environment; '' for none.
      folder='',
    ),
    # Environments of dm_env.
    dm=dict(
      # [frames] Repeats of each action.
      repeat=1,
      # Arguments of the environment as a JSON object, such as '{"level": 3}'.
      kwargs='{}',
      # Another Python, 3.8 or newer, in which the environments run, such as
      # /path/to/venv/bin/python; '' for this one.
      python='',
    ),
    # DeepMind Control.
    dmc=dict(
      # [frames] Repeats of each action.
      repeat=1,
      # [pixels] Height and width of images.
      size=(64, 64),
      # Observes images.
      image=False,
      # Observes the task's numbers.
      proprio=True,
      # Number of the camera of images; -1 for that of the task.
      camera=-1,
    ),
    # Craftax.
    craftax=dict(
      # [steps] Maximum length of an episode; 0 for that of the game.
      length=0,
    ),
    # Crafter.
    crafter=dict(
      # [pixels] Height and width of images.
      size=(64, 64),
      # [steps] Maximum length of an episode; 0 for no limit.
      length=10000,
    ),
    # Recorded data without an environment.
    data=dict(),
    # DeepMind Lab.
    dmlab=dict(
      # [pixels] Height and width of images.
      size=(64, 64),
      # [frames] Repeats of each action.
      repeat=4,
      # Another Python, 3.8 or newer, in which the environments run, such as
      # /path/to/venv/bin/python; '' for this one.
      python='',
    ),
    # Dummy, to measure the rest of a run.
    dummy=dict(
      # [pixels] Height and width of images.
      size=(64, 64),
      # [steps] Length of an episode; 0 for no end.
      length=100,
    ),
    # Gymnasium.
    gym=dict(
      # [pixels] Height and width of images; 0,0 leaves them as they are, and
      # auto keeps a size that all images share and the encoder can take.
      size=('auto',),
      # [frames] Repeats of each action.
      repeat=1,
      # [frames] Maximum length of an episode; 0 for that of the environment.
      length=0,
      # Arguments of the environment as a JSON object, such as
      # '{"render_mode": "rgb_array"}'.
      kwargs='{}',
      # Uses the vector entry point of the ID instead of many environments.
      vector=False,
      # Another Python, 3.8 or newer, in which the environments run, such as
      # /path/to/venv/bin/python; '' for this one.
      python='',
    ),
    # Gymnax.
    gymnax=dict(
      # [frames] Repeats of each action.
      repeat=1,
      # [frames] Maximum length of an episode; 0 for that of the environment.
      length=0,
    ),
    # Locomotion mazes.
    loconav=dict(
      # [frames] Repeats of each action.
      repeat=1,
      # [pixels] Height and width of images.
      size=(64, 64),
      # Observes images.
      image=True,
      # Observes the numbers of the body.
      proprio=True,
      # Number of the camera of images; -1 for that of the body.
      camera=-1,
    ),
    # Memory Maze.
    memmaze=dict(
      # [frames] Repeats of each action.
      repeat=1,
    ),
    # Meta-World.
    metaworld=dict(),
    # Minecraft.
    minecraft=dict(
      # [pixels] Height and width of images.
      size=(64, 64),
      # Factor of the speed at which blocks break.
      break_speed=100.0,
      # [steps] Maximum length of an episode; 0 for no limit.
      length=36000,
      # Another Python, 3.8 or newer, in which the environments run, such as
      # /path/to/venv/bin/python; '' for this one.
      python='',
    ),
    # MyoSuite.
    myosuite=dict(),
    # Pin pad.
    pinpad=dict(
      # [steps] Maximum length of an episode; 0 for no limit.
      length=10000,
    ),
    # MuJoCo Playground.
    playground=dict(
      # [frames] Repeats of each action.
      repeat=1,
      # [frames] Maximum length of an episode; 0 for that of the environment.
      length=0,
      # Configuration of the environment as a JSON object, such as
      # '{"sim_dt": 0.005}'.
      kwargs='{}',
    ),
    # ProcGen.
    procgen=dict(
      # [pixels] Height and width of images.
      size=(96, 96),
      # Difficulty; some games have all of them, and all have easy and hard.
      mode='hard',
      # Number of levels; 0 for all.
      num_levels=0,
      # First level.
      start_level=0,
    ),
  )
