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
O, X = 'tests/optim/test_', 'tests/experiment/test_'
D = 'tests/kernels/test_delta_rule.py'

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
    'slices(batch, micro), jax.random.split(rng, micro)',
    'slices(batch, micro), jnp.stack([rng] * micro)',
    K + 'train_step.py',
  ),
  (
    'train.py',
    'next(n for n in range(-(-micro // one_in)',
    'next(n for n in range(3',
    K + 'train_step.py',
  ),
  (
    'train.py',
    'objective, at, state.vars',
    'objective, state.params, state.vars',
    K + 'train_step.py',
  ),
  ('build.py', 'if found and averaging:', 'if False:', K + 'train_step.py'),
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
    'checks.py',
    "if causal is not None and mixer.fact('causal') != causal:",
    'if False:',
    K + 'build.py',
  ),
  (
    'checks.py',
    "if objective.fact('couples') == 'global'",
    "if objective.fact('couples') == 'micro'",
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
  # experiments, after a review
  (
    'experiment/summary.py',
    'if any(b.diverged for b in needed):',
    'if False:',
    X + 'runner.py',
  ),
  ('experiment/summary.py', 'min(x, self.limit)', 'x', X + 'runner.py'),
  (
    'experiment/summary.py',
    '* self.baseline.steps / self.baseline.tokens',
    '* self.cell.steps / self.cell.tokens',
    X + 'runner.py',
  ),
  ('experiment/results.py', "if r.get('measure') == measure}", 'if True}', X + 'runner.py'),
  (
    'experiment/results.py',
    '    results = read(folder)\n    yield',
    '    results = read("")\n    yield',
    X + 'runner.py',
  ),
  ('experiment/checks.py', 'or not last <= 1.05 * LAST * peak', '', X + 'declare.py'),
  ('experiment/trials.py', 'if twin is not point:', 'if False:', X + 'declare.py'),
  (
    'experiment/statistics.py',
    'np.where(slope < 0, found',
    'np.where(slope < 9, found',
    X + 'statistics.py',
  ),
  # placements of norms, the delta rule
  ('models/residuals/layernorm_scaling.py', 'ctx.depth + 1', 'ctx.depth + 2', C + 'residual.py'),
  ('models/residuals/mix_ln.py', '+ 1e-9)', '+ 1)', C + 'residual.py'),
  (
    'models/residuals/peri_ln.py',
    "drop(self.norm(name='norm_mixer_out')(y, ctx))",
    "drop(self.norm(name='norm_mixer')(y, ctx))",
    C + 'residual.py',
  ),
  ('models/residuals/pre_rmsnorm.py', 'centred(dropout(', '(dropout(', C + 'residual.py'),
  (
    'models/residuals/pre_rmsnorm.py',
    'return centred(x_BTD)',
    'return x_BTD',
    'tests/models/test_placement.py',
  ),
  ('models/norms/pre_crmsnorm.py', 'x.shape[-1] + 1', 'x.shape[-1]', C + 'norm.py'),
  ('kernels/delta_rule/chunked.py', 'jnp.where(r.keep, s, 0.0)', 's', D),
  ('kernels/delta_rule/chunked.py', 'jnp.where(r.keep, ds, 0.0)', 'ds', D),
  ('kernels/delta_rule/chunked.py', '-1 if strict else 0', '0', D),
  ('kernels/delta_rule/chunked.py', 'jnp.sum(x * k, -1) + ', '', D),
  ('kernels/delta_rule/chunked.py', 'dk + more', 'dk', D),
  ('nn/short_conv.py', 'jnp.where(same, x[:, at], 0)', 'x[:, at]', C + 'mixer.py'),
  (
    'models/mixers/deltanet.py',
    'jnp.where(real_BT[..., None], beta_BTH, 0.0)',
    'beta_BTH',
    C + 'mixer.py',
  ),
  ('models/mixers/deltanet.py', 'Memory(state, _last', 'Memory(0 * state, _last', C + 'mixer.py'),
  # optimizers, after a comparison with other implementations
  ('optim/_lowrank.py', '(due | never) & jnp.any', 'due & jnp.any', O + 'galore.py'),
  ('optim/_lowrank.py', '& jnp.any(s != 0, axis=(-2, -1), keepdims=True)', '', O + 'galore.py'),
  ('optim/schedule_free.py', 'last *= (', 'last *= 0 * (', O + 'schedule_free.py'),
  (
    'train.py',
    'lambda x: x.astype(jnp.float32), tree))',
    'lambda x: x, tree))',
    K + 'train_step.py',
  ),
  # experiments
  ('experiment/summary.py', "key=lambda r: r['loss']", "key=lambda r: -r['loss']", X + 'runner.py'),
  ('experiment/summary.py', 'min(numbers), max(numbers)', 'max(numbers),', X + 'runner.py'),
  ('experiment/summary.py', 'if (t.identity, t.code) != key:', 'if False:', X + 'runner.py'),
  ('experiment/statistics.py', 'stats.t.ppf(0.975, freedom)', '1.96', X + 'statistics.py'),
  ('experiment/statistics.py', '(len(known) - rank) * x', 'len(known) * x', X + 'statistics.py'),
  ('experiment/statistics.py', 's.mean + s.stderr *', 's.mean + s.sd *', X + 'statistics.py'),
  (
    'experiment/claims.py',
    'if gain.low > -self.within:',
    'if gain.value > -self.within:',
    X + 'claims.py',
  ),
  ('experiment/claims.py', 'if speedup.low > 1:', 'if speedup.value > 1:', X + 'claims.py'),
  ('experiment/declare.py', "if schedule.fact('extendable') and", 'if False and', X + 'declare.py'),
  ('experiment/declare.py', 'if len(set(counts.values())) > 1:', 'if False:', X + 'declare.py'),
  (
    'experiment/trials.py',
    "'eval.*', 'data.valid', 'log_every'",
    "'eval.*', 'log_every'",
    X + 'declare.py',
  ),
  (
    'experiment/execute.py',
    '(status == exits.RETRY or status < 0)',
    'status == exits.RETRY',
    X + 'execute.py',
  ),
  ('experiment/execute.py', 'idle + 1 if last_step(path) == before else 0', '0', X + 'execute.py'),
  (
    'experiment/results.py',
    "if not same or r['status'] in execute.ENDED",
    'if not same or True',
    X + 'runner.py',
  ),
  ('experiment/runner.py', 'if hours + past > s.hours:', 'if False:', X + 'runner.py'),
  ('experiment/program.py', "f'@{len(names)}'", "'@'", X + 'carry.py'),
  ('experiment/code.py', "body[0].value.value = ''", 'pass', X + 'code.py'),
  # nothing lost
  ('train.py', 'keep(opt, state.opt),', 'opt,', K + 'train_step.py'),
  ('train.py', 'jnp.where(ok, 0, state.streak + 1)', 'state.streak + 1', R + 'bad_steps.py'),
  ('guards/spikes.py', 'jnp.where(jnp.isfinite(x), x, jnp.nan)', 'x', C + 'guard.py'),
  ('guards/spikes.py', 'ddof=1', 'ddof=0', C + 'guard.py'),
  ('data/skips.py', 'if start > update:', 'if start >= update:', 'tests/data/test_skips.py'),
  ('data/loader.py', 'self._order(self._first + int(i))', 'self._order(int(i))', R + 'kills.py'),
  ('data/skips.py', 'self.batch(updates - 1)', 'self.batch(updates)', R + 'bad_steps.py'),
  ('bad_steps.py', 'done - streak - s', 'done - s', R + 'bad_steps.py'),
  ('restore.py', 'if seen == skips.past(step):', 'if True:', R + 'bad_steps.py'),
  ('restore.py', 'seen.joined(rewinds).past(step) == skips.past(step)', 'True', R + 'bad_steps.py'),
  ('restore.py', 'else reversed(steps)', 'else steps', R + 'bad_steps.py'),
  ('rundir.py', 'if lock.key not in _HELD:', 'if not holder:', K + 'rundir.py'),
  ('rundir.py', 'forced = None if same else config', 'forced = None', K + 'rundir.py'),
  ('exits.py', 'class Ended(BaseException)', 'class Ended(Exception)', R + 'stops.py'),
  (
    'run.py',
    'path = rundir.local(workdir)\n  with',
    'path = pathlib.Path(workdir)\n  with',
    K + 'main.py',
  ),
  ('run.py', "'eval' not in done", 'False', K + 'main.py'),
  ('run.py', 'if k not in scored', 'if False', K + 'main.py'),
  ('run.py', 'path.adopt()', 'pass', K + 'main.py'),
  ('main.py', 'if status == exits.DISK:', 'if False:', R + 'stops.py'),
  ('stop.py', 'heard = hangup is not None and', 'heard = hangup is not None or', R + 'stops.py'),
  ('tracking.py', "(b'\\n' if self._torn else b'')", "b''", K + 'main.py'),
  ('checkpoint/saver.py', 'self._late |= scores', 'pass', 'tests/checkpoint/test_saver.py'),
  ('evaluate.py', '    moved(i)\n', '', K + 'watchdog.py'),
  (
    'data/store.py',
    "if meta['tokens_bin_bytes'] <= CHECKED:",
    'if False:',
    'tests/data/test_store.py',
  ),
  ('data/skips.py', 'start < stop <= MOST', 'start < stop', 'tests/data/test_skips.py'),
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
  # optimizers: curvature, clipping, orthogonal updates
  (
    'objectives/clm.py',
    'run_rng, label_rng = jax.random.split(rng)',
    'run_rng = label_rng = jax.random.key(0)',
    'tests/objectives/test_clm_sample.py',
  ),
  (
    'objectives/clm.py',
    '_common.cross_entropy(outputs, labels_BT, w_BT)',
    "_common.cross_entropy(outputs, batch['tokens'][:, 1:], w_BT)",
    'tests/objectives/test_clm_sample.py',
  ),
  (
    'objectives/clm.py',
    'return kinds.Loss(total, jnp.sum(w_BT), {}',
    'return kinds.Loss(total, jnp.float32(w_BT.size), {}',
    'tests/objectives/test_clm_sample.py',
  ),
  (
    'objectives/_common.py',
    'z_BTV + noise_BTV',
    'z_BTV + 0.5 * noise_BTV',
    'tests/objectives/test_clm_sample.py',
  ),
  (
    'objectives/_common.py',
    'jax.random.gumbel(rng, z_BTV.shape',
    'jax.random.gumbel(rng, z_BTV[:, :1].shape',
    'tests/objectives/test_clm_sample.py',
  ),
  (
    'optim/sophia_g.py',
    'jnp.square(g) / jnp.maximum(weight, 1.0)',
    'jnp.square(g / jnp.maximum(weight, 1.0))',
    O + 'sophia_g.py',
  ),
  (
    'optim/sophia_h.py',
    'jnp.multiply, u, jax.grad(along)(params)',
    'jnp.multiply, jax.tree.map(jnp.abs, u), jax.grad(along)(params)',
    O + 'sophia_h.py',
  ),
  (
    'optim/sophia_h.py',
    'jax.random.split(rng, max(len(leaves), 1))',
    '[rng] * len(leaves)',
    O + 'sophia_h.py',
  ),
  (
    'optim/_sophia.py',
    'state.count % every == 0',
    'state.count % every == 1 % every',
    O + 'sophia_g.py',
  ),
  (
    'optim/_sophia.py',
    'jax.lax.cond(state.count % every == 0, renew, keep, state.h)',
    'renew(state.h)',
    O + 'sophia_g.py',
  ),
  ('optim/_sophia.py', 'jnp.maximum(rho * h, eps)', 'jnp.maximum(h, eps)', O + 'sophia_g.py'),
  (
    'optim/_sophia.py',
    'jnp.maximum(rho * h, eps)',
    'jnp.maximum(jnp.abs(rho * h), eps)',
    O + 'sophia_g.py',
  ),
  (
    'optim/_sophia.py',
    'jnp.where(jnp.isfinite(h), jnp.clip(m / b, -1.0, 1.0), jnp.nan)',
    'jnp.clip(m / b, -1.0, 1.0)',
    O + 'sophia_g.py',
  ),
  ('optim/_sophia.py', 'jnp.abs(m) < rho * h', 'jnp.abs(m) < h', O + 'sophia_g.py'),
  (
    'optim/_sophia.py',
    'estimate(_base.wide(params), extra)',
    'estimate(jax.tree.map(jnp.zeros_like, params), extra)',
    O + 'sophia_h.py',
  ),
  (
    'optim/_groups.py',
    'fn(whole(params), *args, **more)',
    'fn(params, *args, **more)',
    O + 'split.py',
  ),
  (
    'optim/_groups.py',
    'x if g == name else y, groups, own, tree',
    'x if g == name else 0 * y, groups, own, tree',
    O + 'split.py',
  ),
  ('optim/split.py', "f.role in ('hidden', 'residual')", "f.role == 'hidden'", O + 'split.py'),
  (
    'optim/split.py',
    "f.is_matrix and f.role in ('hidden', 'residual')",
    "f.role in ('hidden', 'residual')",
    O + 'split.py',
  ),
  ('optim/split.py', "_nest.check('split.rest', rest)", 'pass', O + 'split.py'),
  ('optim/muon.py', '-4.7750, 2.0315', '-4.7750, 2.0515', O + 'muon.py'),
  ('optim/muon.py', 'max(1.0, fan_out / fan_in)', 'max(1.0, fan_in / fan_out)', O + 'muon.py'),
  ('optim/muon.py', 'x = x.mT if tall else x\n', '', O + 'muon.py'),
  (
    'optim/muon.py',
    '_tensors.mix(momentum, m, updates) if nesterov',
    '_tensors.mix(momentum, updates, m) if nesterov',
    O + 'muon.py',
  ),
  ('optim/muon.py', 'axis=(-2, -1), keepdims=True', 'keepdims=True', O + 'muon.py'),
  (
    'optim/muon.py',
    'shard.shard(_share_out(fact, back(factor * orthogonalize(y, steps))), *fact.names)',
    'shard.shard(back(factor * orthogonalize(y, steps)), *fact.names)',
    O + 'muon.py',
  ),
  ('optim/muon.py', 'if not fact.is_matrix:', 'if False:', O + 'muon.py'),
  ('optim/scale.py', 'ins = tuple(fact.axes()[1])', 'ins = tuple(fact.axes()[2])', O + 'scale.py'),
  ('optim/scale.py', 'return norm(m), Head(m)', 'return norm(updates), Head(m)', O + 'scale.py'),
  (
    'optim/scale.py',
    "if 'embed' in roles and 'unembed' not in roles:",
    'if False:',
    O + 'scale.py',
  ),
  ('optim/clip_value.py', 'jnp.abs(u) > bound', 'jnp.abs(u) >= bound', O + 'clip_value.py'),
  ('optim/clip_tensor.py', 'norm / jnp.maximum(n, norm)', 'norm / n', O + 'clip_tensor.py'),
  (
    'optim/_tensors.py',
    'return tuple(ins + outs)',
    'return tuple(range(len(fact.names)))',
    O + 'clip_tensor.py',
  ),
  ('optim/adagc.py', 'warm = count < start', 'warm = count <= start', O + 'adagc.py'),
  (
    'optim/adagc.py',
    'beta * gamma + (1 - beta) * n * f',
    'beta * gamma + (1 - beta) * n',
    O + 'adagc.py',
  ),
  (
    'optim/adagc.py',
    'jnp.minimum(gamma, n * f), mean), gamma)',
    'jnp.minimum(gamma, n * f), mean), 0.0)',
    O + 'adagc.py',
  ),
  (
    'optim/adagc.py',
    'jnp.where(n > 0, jnp.where(warm,',
    'jnp.where(n >= 0, jnp.where(warm,',
    O + 'adagc.py',
  ),
  ('optim/adagc.py', 'jnp.isinf(gamma), n * f,', 'False, n * f,', O + 'adagc.py'),
  (
    'optim/stable_adamw.py',
    'outrun, facts, updates, v)',
    'outrun, facts, updates, state.v)',
    O + 'stable_adamw.py',
  ),
  (
    'optim/stable_adamw.py',
    'outrun, facts, updates, v)',
    'outrun, facts, m, v)',
    O + 'stable_adamw.py',
  ),
  (
    'optim/stable_adamw.py',
    'jnp.maximum(v, eps * eps)',
    'jnp.maximum(v, 1e-38)',
    O + 'stable_adamw.py',
  ),
  ('optim/_tensors.py', 'b * jnp.expm1((t - 1)', 'b * jnp.expm1(t', O + 'stable_spam.py'),
  ('optim/stable_spam.py', 'count % every + 1)', 'count % every)', O + 'stable_spam.py'),
  ('optim/stable_spam.py', 'unbiased(b1, age)', 'unbiased(b1, count)', O + 'stable_spam.py'),
  (
    'optim/stable_spam.py',
    'unbiased(gamma2, count)',
    'gamma2',
    O + 'stable_spam.py',
  ),
  (
    'optim/stable_spam.py',
    'g * (peak / jnp.where(top > 0, top, 1.0))',
    'jnp.sign(g) * peak',
    O + 'stable_spam.py',
  ),
  (
    'models/linears/low_rank.py',
    '* (self.alpha / self.rank)',
    '* self.alpha',
    'tests/models/test_low_rank.py',
  ),
  (
    'models/linears/low_rank.py',
    'fact.fans(shape)[0]',
    'fact.fans(shape)[1]',
    'tests/models/test_low_rank.py',
  ),
  (
    'models/linears/low_rank.py',
    'if self.rank >= min(',
    'if self.rank > min(',
    'tests/models/test_low_rank.py',
  ),
  (
    'models/linears/low_rank.py',
    'Fact(names, inputs, self.role)',
    'Fact(names, inputs)',
    C + 'linear.py',
  ),
  ('parallel/shard.py', "'rank': ()", "'rank': ('tensor',)", 'tests/models/test_low_rank.py'),
  ('models/embeds/stable.py', 'xavier_uniform()', 'xavier_normal()', 'tests/models/test_stable.py'),
  ('models/embeds/stable.py', "tied=lambda args: args['tied']", 'tied=True', C + 'embed.py'),
  (
    'models/embeds/stable.py',
    '    x = x * self.scale if self.scale != 1 else x\n',
    '',
    C + 'embed.py',
  ),
  (
    'schedules/rewarm.py',
    '_base.towards(_base.ramp(step, w), start)',
    '_base.ramp(step, w)',
    C + 'schedule.py',
  ),
  ('optim/reset.py', 'jnp.where(due, new, old)', 'old', O + 'reset.py'),
  (
    'optim/reset.py',
    'due = state.count % every == 0',
    'due = (state.count + 1) % every == 0',
    O + 'reset.py',
  ),
  ('optim/_nest.py', "part.fact('retract')", 'False', K + 'train_step.py'),
  (
    'optim/refactor.py',
    'root = jnp.where(top < 0, -1.0, 1.0), jnp.sqrt(size)',
    'root = jnp.where(top < 0, -1.0, 1.0), size',
    O + 'refactor.py',
  ),
  (
    'optim/refactor.py',
    'jnp.where(top < 0, -1.0, 1.0)',
    'jnp.where(top < 0, 1.0, 1.0)',
    O + 'refactor.py',
  ),
  ('optim/refactor.py', 'count % every == 0', 'count % every == 1 % every', O + 'refactor.py'),
  ('optim/refactor.py', 'optax.safe_increment(state.count)', 'state.count', O + 'refactor.py'),
  ('optim/refactor.py', 'if not pairs(facts):', 'if False:', O + 'refactor.py'),
  (
    'optim/refactor.py',
    'if len(downs) != 1 or len(ups) != 1:',
    'if len(downs) != 1:',
    O + 'refactor.py',
  ),
  ('optim/refactor.py', '_base.wide(x)', 'x', O + 'refactor.py'),
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
