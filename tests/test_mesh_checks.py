"""What a mesh may not be asked for is refused by name, before data is read."""

import jax
import pytest

import _meshes
from lmjax import build
from lmjax import config
from lmjax import main
from lmjax import mesh_checks
from lmjax.parallel import mesh as mesh_lib

SMALL = {
  'model.width': '32',
  'model.depth': '4',
  'data.length': '32',
  'batch_tokens': '512',
  'model.mixer': 'gqa(head_dim=8)',
  'model.embed': 'untied(multiple_of=8)',
  'sample.tokens': '0',
}


def checked(axes, more=()):
  changes = SMALL | dict(more)
  mesh = dict(_meshes.settings(**axes))
  run = build.build(config.resolve(config.load('quickstart', list(changes.items()))))
  mesh_checks.devices(run, mesh_lib.abstract(mesh))


FITS = [
  (dict(data=4, sequence=2), {}),
  (dict(stage=2, data=4), {}),
  (dict(stage=2, data=4), {'mesh.stage_rounds': '2'}),
  (dict(data=2, tensor=2), {'model.mixer': 'deltanet(head_dim=8)', 'model.position': 'none()'}),
  (dict(tensor=8), {'model.mixer': 'gqa(head_dim=4, kv_heads=1)', 'model.ffn': 'gelu()'}),
]


@pytest.mark.parametrize('axes, more', FITS, ids=str)
def test_what_fits_passes(axes, more):
  checked(axes, more)


REFUSED = [
  (
    dict(data=32),
    {},
    '16 rows .*, which do not divide over 32 devices, .*; config.batch_tokens=1024 would',
  ),
  (dict(sequence=8), {'data.length': '8'}, 'in 16 chunks, and the 8 tokens .*that do are 16$'),
  (
    dict(sequence=2),
    {'data.length': '30', 'batch_tokens': '480'},
    'the 30 tokens .*length=30.* do not divide; the nearest that do are 28 and 32',
  ),
  (
    dict(sequence=2),
    {'model.mixer': 'deltanet(head_dim=8)', 'model.position': 'none()'},
    'blocks.block.mixer=deltanet.* cannot work on rows that are cut over devices',
  ),
  (
    dict(sequence=2),
    {'model.ffn': 'base_layers(experts=2)'},
    'ffn=base_layers.* couples the tokens of a micro-batch',
  ),
  (
    dict(sequence=2),
    {'model.architecture': 'mixture_of_recursions()', 'model.stack': 'shared(block)*2'},
    'architecture=mixture_of_recursions.* runs its layers in a way of its own',
  ),
  (dict(stage=2), {'sample.tokens': '5'}, 'a pipeline does not decode; set config.sample.tokens=0'),
  (dict(stage=2), {'eval.tasks': 'lambada()'}, "does not decode; set config.eval.tasks=''"),
  (
    dict(stage=2, data=4),
    {'mesh.stage_micro_batches': '8'},
    'stage_micro_batches=8: 16 rows .* do not divide into 8 micro-batches over 4 devices',
  ),
  (dict(stage=2), {'model.depth': '3'}, "axis 'layers' of size 3 does not divide over 2 devices"),
  (dict(stage=2), {'mesh.stage_rounds': '4'}, 'do not divide the 4 groups of layers'),
  (dict(stage=2), {'model.residual.dropout': '0.1'}, 'layers draw random numbers'),
  (dict(stage=2), {'model.norm': 'power_norm()'}, 'segment_0 has variables'),
  (dict(stage=2), {'model.stack': 'block*4 + shared(block)*4'}, 'layers that share their weights'),
  (
    dict(stage=2),
    {
      'objective': 'electra(generator=1)',
      'model.mixer': 'gqa(head_dim=8, causal=False)',
      'model.embed': 'tied(multiple_of=8)',
    },
    'objective=.electra.* runs its layers without a pipeline',
  ),
  (dict(tensor=8), {'model.ffn': 'swiglu(hidden=20)'}, "axis 'mlp' of size 20 does not divide"),
]


@pytest.mark.parametrize('axes, more, words', REFUSED, ids=[str(r[:2]) for r in REFUSED])
def test_what_does_not_fit_is_refused(axes, more, words):
  with pytest.raises(ValueError, match=f'^config.mesh.*{words}|^config.batch_tokens.*{words}'):
    checked(axes, more)


@pytest.mark.parametrize(
  'axes, words',
  [
    (dict(stage=2, sequence=4), 'stage 2 x sequence 4 is no tested combination .*replica x data'),
    (dict(expert=2, sequence=2), 'no tested combination'),
    (
      dict(mode='explicit', sequence=2),
      "mode='explicit': config.mesh.sequence=2 needs mode='auto'",
    ),
    (dict(mode='explicit', stage=2), "config.mesh.stage=2 needs mode='auto'"),
  ],
  ids=str,
)
def test_combinations_that_no_test_has_seen_are_refused(axes, words):
  with pytest.raises(ValueError, match=words):
    mesh_lib.abstract(_meshes.settings(**axes))


def test_a_way_for_keys_that_there_is_not():
  with pytest.raises(ValueError, match="config.mesh.context='rings': .*did you mean 'ring'"):
    build.build(config.resolve(config.load('quickstart', [('mesh.context', 'rings')])))
  with pytest.raises(ValueError, match="config.mesh.stage_gather='never': one of once, each"):
    build.build(config.resolve(config.load('quickstart', [('mesh.stage_gather', 'never')])))


@pytest.mark.skipif(jax.device_count() < 8, reason='eight devices are needed')
def test_the_command_refuses_before_it_makes_a_directory(tmp_path, capsys):
  words = ['--config=quickstart', f'--workdir={tmp_path / "w"}', '--config.mesh.sequence=8']
  assert main.main([*words, '--config.mesh.mode=explicit']) == 2
  assert "config.mesh.sequence=8 needs mode='auto'" in capsys.readouterr().err
  words = [*words, '--config.data.length=24', '--config.batch_tokens=384']
  assert main.main(words) == 2
  assert 'the nearest that do are 16 and 32' in capsys.readouterr().err
  assert not (tmp_path / 'w').exists()


class Slices:
  """Devices of two slices, as a topology gives them."""

  platform, device_kind = 'tpu', 'TPU v4'

  def __init__(self, i):
    self.id, self.slice_index, self.process_index = i, i // 4, i // 4
    self.coords, self.core_on_chip = (i % 2, i % 4 // 2, 0), 0


def test_replicas_lie_over_slices():
  devices = [Slices(i) for i in range(8)]
  arranged = mesh_lib._arranged({'replica': 2, 'data': 2, 'tensor': 2}, devices)
  assert [{d.slice_index for d in part.flat} for part in arranged] == [{0}, {1}]
  with pytest.raises(ValueError, match='config.mesh.replica=1: the devices are of 2 slices'):
    mesh_lib._arranged({'data': 4, 'tensor': 2}, devices)
