"""Breaks the code in one place at a time and checks that the tests notice.

  python tests/mutate.py            every mutation (minutes)
  python tests/mutate.py mlm rope   those whose file or text contains a word

Works on a copy of the package in a temporary folder; the checkout is never touched. Prints the
mutations that no test noticed and fails if there are any, if a text to be replaced is not there, or
if tests fail without any mutation.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
C, K, R = 'tests/contracts/test_', 'tests/test_', 'tests/reliability/test_'

# (file under lmjax, text, what it becomes, tests that must fail)
MUTATIONS = (
  ('models/norms/rms_norm.py', 'jnp.square(x32)', 'jnp.abs(x32)', C + 'norm.py'),
  ('models/norms/rms_norm.py', 'x32 = x.astype(jnp.float32)', 'x32 = x', C + 'norm.py'),
  ('models/norms/layer_norm.py', 'shift_invariant=True', 'shift_invariant=False', C + 'norm.py'),
  (
    'models/residuals/pre.py',
    "y, fed = self.feed(self.norm(name='norm_ffn')(x, ctx), ctx)",
    'y, fed = self.feed(x, ctx)',
    C + 'residual.py',
  ),
  (
    'models/residuals/parallel.py',
    'if self.shared_norm else',
    'if not self.shared_norm else',
    C + 'residual.py',
  ),
  (
    'models/residuals/_wiring.py',
    "f'loss/{part}/{rest[5:]}' if rest.startswith('loss/') else key",
    'key',
    C + 'residual.py',
  ),
  ('nn/dropout.py', 'x_BTD / (1 - rate)', 'x_BTD', C + 'residual.py'),
  (
    'models/mixers/gqa.py',
    'x_BTD = jnp.where((ctx.segments_BT > 0)[..., None], x_BTD, 0)',
    'pass',
    C + 'mixer.py',
  ),
  ('models/mixers/gqa.py', "self.qk_norm(name='norm_k')(k_BTGK, ctx)", 'k_BTGK', C + 'mixer.py'),
  (
    'models/mixers/gqa.py',
    "raise kinds.Unsupported('mixer gqa has no cross-attention')",
    'pass',
    C + 'mixer.py',
  ),
  ('kernels/attention/reference.py', 'mask &= gap >= 0', 'mask &= gap >= -1', C + 'mixer.py'),
  (
    'kernels/attention/reference.py',
    'jnp.abs(gap) < window',
    'jnp.abs(gap) <= window',
    C + 'mixer.py',
  ),
  (
    'kernels/attention/reference.py',
    'mask &= q_segments[:, :, None] == k_segments[:, None, :]',
    'pass',
    C + 'mixer.py',
  ),
  (
    'kernels/attention/reference.py',
    'k, v = jnp.repeat(k, groups, axis=2), jnp.repeat(v, groups, axis=2)',
    'k, v = jnp.tile(k, (1, 1, groups, 1)), jnp.tile(v, (1, 1, groups, 1))',
    'tests/kernels/test_attention.py',
  ),
  (
    'kernels/attention/xla.py',
    'dk = {t: x * rule.scale for t, x in dk.items()}',
    'dk = dict(dk)',
    'tests/kernels/test_attention.py',
  ),
  (
    'models/caches/_base.py',
    'slots = slots % size if self.ring else slots',
    'slots = jnp.minimum(slots, size - 1) if self.ring else slots',
    C + 'mixer.py',
  ),
  ('models/ffn/swiglu.py', 'nn.silu(gate) * up', 'gate * nn.silu(up)', C + 'ffn.py'),
  (
    'models/ffn/_sized.py',
    '-(-units // part.multiple_of) * part.multiple_of',
    'units // part.multiple_of * part.multiple_of',
    C + 'ffn.py',
  ),
  (
    'models/linears/dense.py',
    'Fact(in_names + out_names, in_names, self.role)',
    'Fact(in_names + out_names, out_names, self.role)',
    C + 'linear.py',
  ),
  ('models/linears/dense.py', 'y = y + shard.gather', 'y = y - shard.gather', C + 'linear.py'),
  (
    'models/positions/rope.py',
    'b * cos + a * sin], axis=-1)\n    else',
    'b * cos - a * sin], axis=-1)\n    else',
    C + 'position.py',
  ),
  ('models/positions/rope.py', 'factor ** (size / (size - 2))', 'factor', C + 'position.py'),
  ('models/positions/alibi.py', 'of(2 * power)[0::2]', 'of(2 * power)[1::2]', C + 'position.py'),
  (
    'models/positions/sinusoidal.py',
    '[jnp.sin(angles), jnp.cos(angles)]',
    '[jnp.cos(angles), jnp.sin(angles)]',
    C + 'position.py',
  ),
  (
    'models/init/fan_in.py',
    'fan_in, _ = fact.fans(shape)',
    '_, fan_in = fact.fans(shape)',
    C + 'init.py',
  ),
  (
    'models/init/mup.py',
    "return 1 / self.ratio if fact.role in ('hidden', 'residual') else 1.0",
    'return 1.0',
    C + 'init.py::test_coordinate_check',
  ),
  (
    'models/init/mup.py',
    '  def logit_scale(self):\n    return 1 / self.ratio',
    '  def logit_scale(self):\n    return 1.0',
    C + 'init.py::test_coordinate_check',
  ),
  ('nn/embedding.py', '-1e30)', '0.0)', C + 'embed.py'),
  (
    'nn/embedding.py',
    "('vocab',) if role == 'embed' else ('embed',)",
    "('embed',)",
    C + 'embed.py',
  ),
  ('nn/stack.py', 'depth=depth + i', 'depth=depth', C + 'architecture.py'),
  (
    'nn/stack.py',
    "variable_broadcast='params' if s.shared else False",
    'variable_broadcast=False',
    C + 'architecture.py',
  ),
  ('nn/stack.py', "'dropout': True", "'dropout': False", C + 'architecture.py'),
  (
    'nn/stack.py',
    'offset += s.repeats * len(s.pattern)',
    'offset += s.repeats',
    C + 'architecture.py',
  ),
  ('parallel/remat.py', 'return True, None', 'return False, None', K + 'remat.py'),
  (
    'objectives/_common.py',
    'mean_BT = jnp.mean(z_BTV, axis=-1, where=real_V)',
    'mean_BT = jnp.mean(z_BTV, axis=-1)',
    C + 'objective.py',
  ),
  ('objectives/_common.py', 'z_loss * jnp.square(lse_BT)', 'z_loss * lse_BT', C + 'objective.py'),
  ('objectives/clm.py', '(s[:, 1:] == s[:, :-1]) & ', '', C + 'objective.py'),
  ('objectives/mlm.py', '& (segments > 0) & ~special', '& (segments > 0)', C + 'objective.py'),
  ('objectives/mlm.py', 'u < self.mask + self.random', 'u < self.mask', C + 'objective.py'),
  (
    'train.py',
    'by = 1 / jnp.maximum(weight, 1.0)',
    'by = 1 / jnp.maximum(weight, 1.0) / micro',
    K + 'train_step.py',
  ),
  ('train.py', 'keep(vars, state.vars)', 'vars', K + 'train_step.py'),
  ('train.py', '& jnp.isfinite(update_norm)', '', K + 'train_step.py'),
  (
    'train.py',
    'rngs = jax.random.split(rng, micro)',
    'rngs = jnp.stack([rng] * micro)',
    K + 'train_step.py',
  ),
  ('train.py', 'rng = jax.random.fold_in(key, state.step)', 'rng = key', K + 'train_step.py'),
  ('train.py', '-lr * f * u', '-lr * u', K + 'train_step.py'),
  ('parallel/shard.py', "'mlp': ('tensor',)", "'mlp': ()", K + 'shard.py'),
  ('parallel/shard.py', '    if size % n:\n', '    if False:\n', K + 'shard.py'),
  (
    'parallel/facts.py',
    'names.insert(index, params.get(nn.PARTITION_NAME))',
    'names.append(params.get(nn.PARTITION_NAME))',
    K + 'facts.py',
  ),
  (
    'parallel/facts.py',
    'z.reshape(shape).transpose(inverse)',
    'z.reshape(shape).transpose(perm)',
    K + 'facts.py',
  ),
  (
    'specs.py',
    'return checked(ast.literal_eval(node))',
    'return checked(eval(ast.unparse(node)))',
    K + 'specs.py',
  ),
  ('specs.py', "name = f'{base}_{n}'", "name = f'{base}{n}'", K + 'specs.py'),
  (
    'registry.py',
    'isinstance(value, int) and not isinstance(value, bool), value',
    'isinstance(value, int), value',
    K + 'registry.py',
  ),
  ('registry.py', 'if key not in params:\n', 'if False:\n', K + 'registry.py'),
  ('config.py', "'mesh.*',", '', K + 'config.py'),
  ('overrides.py', 'if not number.is_integer():', 'if False:', K + 'config.py'),
  (
    'build.py',
    "if causal is not None and mixer.fact('causal') != causal:",
    'if False:',
    K + 'build.py',
  ),
  (
    'build.py',
    "if objective.fact('couples') != 'none'",
    "if objective.fact('couples') == 'none'",
    K + 'build.py',
  ),
  (
    'checkpoint/manifest.py',
    'if (p := _check_size(step_dir, n, entry))',
    'if (p := None)',
    'tests/checkpoint/test_damage.py',
  ),
  (
    'checkpoint/manifest.py',
    ', *_foreign(step_dir, listed, below)]',
    ']',
    'tests/checkpoint/test_damage.py',
  ),
  (
    'checkpoint/manifest.py',
    'if not _link(step_dir, name) and _is_file(path):',
    'if _is_file(path):',
    'tests/checkpoint/test_manifest.py',
  ),
  (
    'checkpoint/manifest.py',
    "for name in read(step_dir, DOOMED)['files']:",
    "for name in json.loads(doomed.read_text())['files']:",
    'tests/checkpoint/test_manifest.py',
  ),
  (
    'checkpoint/reader.py',
    'return processes.from_primary(lambda: self._found().offered())',
    'return self.steps()',
    'tests/checkpoint/test_damage.py',
  ),
  (
    'checkpoint/saver.py',
    "self._set_aside({s: 'damaged' for s in self._scan().damaged if s > step})",
    'pass',
    'tests/checkpoint/test_damage.py',
  ),
  (
    'checkpoint/saver.py',
    'self._mine = {s for s in self._mine if s <= after}',
    'pass',
    'tests/checkpoint/test_saver.py',
  ),
  (
    'checkpoint/saver.py',
    'if self._begun == step:',
    'if True:',
    'tests/checkpoint/test_saver.py',
  ),
  (
    'checkpoint/saver.py',
    'room.drop_unfinished(self.directory, step)',
    'pass',
    'tests/checkpoint/test_saver.py',
  ),
  (
    'checkpoint/saver.py',
    'self.blocked += time.monotonic() - start',
    'pass',
    'tests/checkpoint/test_saver.py',
  ),
  (
    'checkpoint/room.py',
    'keep |= {scan.best(whole, self.best_key), saved}',
    'keep |= {scan.best(whole, self.best_key)}',
    'tests/checkpoint/test_saver.py',
  ),
  (
    'checkpoint/arrays.py',
    "if 'impl' not in entry and have != entry:",
    'if False:',
    'tests/checkpoint/test_damage.py',
  ),
  (
    'checkpoint/tool.py',
    'if (np.isfinite(out) != np.isfinite(array)).any():',
    'if False:',
    'tests/checkpoint/test_tool.py',
  ),
  (
    'checkpoint/compare.py',
    'other = (bits[0] != bits[1]).any(axis=1)',
    'other = a.reshape(-1) != b.reshape(-1)',
    'tests/checkpoint/test_tool.py',
  ),
  (
    'interop/safetensors.py',
    'math.prod(max(n, 1) for n in shape)',
    'math.prod(shape)',
    'tests/interop/test_safetensors.py',
  ),
  (
    'interop/safetensors.py',
    'if e.begin != at:',
    'if e.begin < at:',
    'tests/interop/test_safetensors.py',
  ),
  (
    'interop/safetensors.py',
    "array = np.asarray(array, order='C')",
    'array = np.asarray(array)',
    'tests/interop/test_safetensors.py',
  ),
  (
    'interop/safetensors.py',
    'if len(out) < len(pairs):',
    'if False:',
    'tests/interop/test_safetensors.py',
  ),
  (
    'flops.py',
    'import math\n',
    'import math\nfrom lmjax.models.mixers import gqa\n',
    K + 'house.py',
  ),
  # nothing lost
  ('train.py', 'keep(opt, state.opt),', 'opt,', K + 'train_step.py'),
  ('train.py', 'jnp.where(ok, 0, state.streak + 1)', 'state.streak + 1', R + 'bad_steps.py'),
  ('guards/spikes.py', 'jnp.where(jnp.isfinite(x), x, jnp.nan)', 'x', C + 'guard.py'),
  ('guards/spikes.py', 'ddof=1', 'ddof=0', C + 'guard.py'),
  ('data/skips.py', 'if start > update:', 'if start >= update:', 'tests/data/test_skips.py'),
  ('data/loader.py', 'self._order(self._first + int(i))', 'self._order(int(i))', R + 'kills.py'),
  ('feed.py', 'self.skips.batch(step - 1)', 'self.skips.batch(step)', R + 'bad_steps.py'),
  ('bad_steps.py', 'done - streak - s', 'done - s', R + 'bad_steps.py'),
  (
    'restore.py',
    'return not skips or self._feed.fits(self._checkpoints.cursor(step))',
    'return True',
    R + 'bad_steps.py',
  ),
  (
    'restore.py',
    'self._feed.check(cursor, step)',
    'state = state.replace(opt=jax.tree.map(jax.numpy.zeros_like, state.opt))',
    R + 'kills.py',
  ),
  ('recompute.py', '(2 * place + 1)', '(2 * place)', K + 'recompute.py'),
  ('recompute.py', 'runs[0] = good', 'pass', K + 'recompute.py'),
  ('loop.py', 'if not every or done % every:', 'if True:', R + 'corruption.py'),
  ('loop.py', 'self._failed(e, self.failed_saves)', 'pass', R + 'disk.py'),
  ('stop.py', 'self._held = True', 'self._held = False', R + 'stops.py'),
  ('watchdog.py', 'os._exit(exits.RETRY)', 'pass', K + 'watchdog.py'),
  ('parallel/processes.py', 'max(begun)', 'min(begun) - 1', R + 'hosts.py'),
)


def run(home: pathlib.Path, tests: str) -> bool:
  """Whether the tests pass on the copy."""
  env = {**os.environ, 'PYTHONPATH': str(home), 'PYTHONDONTWRITEBYTECODE': '1'}
  return (
    subprocess.run(
      [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider', tests],
      cwd=home,
      env=env,
      capture_output=True,
    ).returncode
    == 0
  )


def main(words: list[str]) -> int:
  unseen, sound = [], {}
  with tempfile.TemporaryDirectory() as folder:
    home = pathlib.Path(folder) / 'copy'
    shutil.copytree(
      ROOT, home, ignore=shutil.ignore_patterns('.git', '__pycache__', '.venv*', 'runs')
    )
    for file, old, new, tests in MUTATIONS:
      title = f'{file}: {old!r} -> {new!r}'
      if words and not any(w in title + tests for w in words):
        continue
      path = home / 'lmjax' / file
      text = path.read_text()
      if old not in text:
        unseen.append(f'{title}: the text is not there')
      else:
        if tests not in sound:  # a test that fails by itself notices nothing
          sound[tests] = run(home, tests)
          if not sound[tests]:
            unseen.append(f'{tests} fails without any mutation')
        path.write_text(text.replace(old, new, 1))
        if run(home, tests):
          unseen.append(f'{title}: {tests} passes all the same')
        path.write_text(text)
      print('unseen' if unseen and unseen[-1].startswith(title) else 'seen  ', title, flush=True)
  print(*unseen, sep='\n')
  return 1 if unseen else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
