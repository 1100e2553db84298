"""Bytes and FLOPs of tagged tensors, by hand, on one device and on meshes."""

import functools

import pytest

import _meshes
from lmjax import build
from lmjax import config
from lmjax.parallel import mesh as mesh_lib
from lmjax.parallel import remat
from lmjax.parallel import remat_bytes

WIDTH, DEPTH, HIDDEN, LENGTH, ROWS, MICRO = 32, 3, 48, 16, 8, 2
TOKENS = ROWS * LENGTH // MICRO
SETTINGS = (
  ('model.width', str(WIDTH)),
  ('model.depth', str(DEPTH)),
  ('model.mixer', 'gqa(head_dim=8, kv_heads=2)'),
  ('model.ffn', f'swiglu(hidden={HIDDEN})'),
  ('data.length', str(LENGTH)),
  ('batch_tokens', str(ROWS * LENGTH)),
  ('micro_batches', str(MICRO)),
)
STREAM = DEPTH * TOKENS * WIDTH * 4
BYTES = dict.fromkeys(remat.NAMES, STREAM) | dict(
  qkv=2 * STREAM, ffn_up=2 * STREAM * HIDDEN // WIDTH, ffn_hidden=STREAM * HIDDEN // WIDTH
)
PRODUCT = 2 * DEPTH * TOKENS * WIDTH  # times what a row of the matrix has
FLOPS = dict.fromkeys(remat.NAMES, 0) | dict(
  qkv=PRODUCT * 2 * WIDTH, mixer_out=PRODUCT * WIDTH, ffn_up=PRODUCT * 2 * HIDDEN
)


@functools.cache
def run(policy: str, *more) -> build.Run:
  changes = [*SETTINGS, ('model.remat', policy), *more]
  return build.build(config.resolve(config.load('quickstart', changes)))


def by_name(found):
  return {r.name: r for r in found}


def test_bytes_and_flops_by_hand():
  """What making a tensor again costs follows from the derivative: nobody needs the last product of
  a layer twice, nor the hidden units where what they are made of is kept.
  """
  found = by_name(remat_bytes.rows(run('full')))
  assert {n: r.bytes for n, r in found.items()} == BYTES
  assert {n: r.flops for n, r in found.items()} == FLOPS
  assert {n: r.tensors for n, r in found.items()} == {
    n: DEPTH * {'qkv': 3, 'ffn_up': 2}.get(n, 1) for n in remat.NAMES
  }


@pytest.mark.parametrize(
  'policy, kept, away',
  [
    ('full', {'layer_in'}, set()),
    ('none', set(remat.NAMES), set()),
    ('names(qkv) + offload(layer_in, ffn_up)', {'qkv'}, {'layer_in', 'ffn_up'}),
  ],
)
def test_what_becomes_of_each(policy, kept, away):
  fates = {n: r.fate for n, r in by_name(remat_bytes.rows(run(policy))).items()}
  again = remat.NAMES.keys() - kept - away
  assert fates == (
    dict.fromkeys(kept, remat_bytes.KEPT)
    | dict.fromkeys(away, remat_bytes.AWAY)
    | dict.fromkeys(again, remat_bytes.AGAIN)
  )


def test_the_second_layer_of_a_group_begins_with_a_tensor_that_is_made_again():
  """Only the input of the whole group is kept by itself."""
  found = [r for r in remat_bytes.rows(run('full', ('model.stack', '(block, block)*2')))]
  assert [(r.tensors, r.fate) for r in found if r.name == 'layer_in'] == [
    (2, remat_bytes.KEPT),
    (2, remat_bytes.AGAIN),
  ]


@pytest.mark.parametrize('mode', ['auto', 'explicit'])
def test_a_mesh_cuts_rows_and_hidden_units(mode):
  mesh = mesh_lib.abstract(_meshes.settings(mode, data=2, tensor=2))
  found = by_name(remat_bytes.rows(run('full'), mesh))
  cut = {n: 4 if n in ('qkv', 'ffn_up', 'ffn_hidden') else 2 for n in remat.NAMES}
  assert {n: r.bytes for n, r in found.items()} == {n: BYTES[n] / cut[n] for n in BYTES}
  assert {n: r.flops for n, r in found.items()} == {n: FLOPS[n] / 4 for n in FLOPS}


def test_fewer_heads_of_keys_than_devices_lie_on_all_of_them():
  mesh = mesh_lib.abstract(_meshes.settings(tensor=4))
  found = by_name(remat_bytes.rows(run('full'), mesh))
  assert found['qkv'].bytes == STREAM / 4 + 2 * STREAM / 2  # two heads of keys, whole


def test_what_a_policy_computes_again():
  """`full` makes the whole layer again but for its last product; attention is made again unless
  everything is kept.
  """
  full, some = (remat_bytes.again(run(p)) for p in ('full', 'names(qkv, mixer_out, ffn_up)'))
  assert full - some == sum(FLOPS.values()) and some > 0
  assert remat_bytes.again(run('none')) == 0
