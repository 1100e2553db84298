"""MaxText's own train step on the tiny GPT of `cpu_step.py`, for an interpreter that has MaxText.

`maxtext` is its llama2 block made plain: RMS norm, one GELU matrix pair instead of a gated one, the
output tied to the embedding. Its rotary positions cannot be turned off; they stand for the learned
ones, so it has 65,536 parameters less. `maxtext-gpt3` is its GPT-3 block: learned positions, layer
norm, biases, one product for query, key and value. `-scan` scans over the layers. What could slow
it down is off: recomputation, clipping, dropout, checkpoints. The setup is that of its
`train_loop`, the batch its synthetic one.
"""

import contextlib
import os
import pathlib
import tempfile

from cpu_contestants import HEADS, HIDDEN, LAYERS, LENGTH, VOCAB, WIDTH

GPT3 = dict(decoder_block='gpt3', trainable_position_size=LENGTH, fused_qkv=True)


def settings(kind: str, rows: int, overrides) -> list[str]:
  """KEY=VALUE words as its command line takes them."""
  out = dict(
    run_name='race',
    base_output_directory=tempfile.gettempdir(),
    hardware='cpu',
    skip_jax_distributed_system=True,
    enable_checkpointing=False,
    enable_tensorboard=False,
    dataset_type='synthetic',
    decoder_block='llama2',
    base_emb_dim=WIDTH,
    base_num_query_heads=HEADS,
    base_num_kv_heads=HEADS,
    head_dim=WIDTH // HEADS,
    base_mlp_dim=HIDDEN,
    base_num_decoder_layers=LAYERS,
    mlp_activations='["gelu"]',
    vocab_size=VOCAB,
    logits_via_embedding=True,
    normalize_embedding_logits=False,
    max_target_length=LENGTH,
    per_device_batch_size=rows,
    dtype='float32',
    attention='dot_product',
    remat_policy='none',
    scan_layers=kind.endswith('-scan'),
    enable_dropout=False,
    gradient_clipping_threshold=0.0,
    learning_rate=1e-3,
    adam_b2=0.999,
    adam_weight_decay=1e-4,
    warmup_steps_fraction=0.0,
    steps=1_000_000,
  )
  out |= GPT3 if 'gpt3' in kind else {}
  return [f'{k}={v}' for k, v in (out | dict(o.split('=', 1) for o in overrides)).items()]


def maxtext_step(kind: str, rows: int, overrides):
  """(one(): runs a step and returns the loss as a device value, parameters)."""
  os.environ['JAX_PLATFORMS'] = 'cpu'
  import jax
  from flax import nnx
  from flax.core.spmd import logical_axis_rules
  import maxtext
  from maxtext.trainers.pre_train import train
  from maxtext.utils import sharding
  from maxtext.utils import train_utils

  base = pathlib.Path(maxtext.__file__).parent / 'configs' / 'base.yml'
  config, recorder = train.initialize(['train', str(base), *settings(kind, rows, overrides)])
  _, _, placed, _, mesh, _, _, loader, rampup, _, state = train_utils.setup_train_loop(
    config, recorder
  )
  graph, state = nnx.split(state)
  params, placed = sharding.maybe_update_params_sharding_with_opt(config, placed)
  step, _ = train_utils.jit_train_and_eval_step(
    config, graph, mesh, state, placed, train.train_step, params_shardings=params
  )
  batch = loader.load_next_batch(rampup_manager=rampup)
  inside = contextlib.ExitStack()  # for the life of the process
  inside.enter_context(jax.set_mesh(mesh))
  inside.enter_context(logical_axis_rules(config.logical_axis_rules))
  trained = nnx.state(nnx.merge(graph, state).model, nnx.Param)

  def one():
    nonlocal state
    state, metrics = step(state, batch)
    return metrics['scalar']['learning/loss']

  return one, sum(a.size for a in jax.tree.leaves(trained))
