"""Mutations of the methods that came after the core; see mutate.py."""

C, K = 'tests/contracts/test_', 'tests/test_'
M, J = 'tests/models/test_', 'tests/objectives/test_'
A, G, H = (
  'tests/kernels/test_assignment.py',
  'tests/evals/test_glue_files.py',
  'tests/evals/test_glue_finetuning.py',
)
U = 'tests/data/test_ul2.py'
E, B, P, R = (
  M + 'encoder_decoder.py',
  M + 'base_layers.py',
  M + 'power_norm.py',
  M + 'mixture_of_recursions.py',
)
N = 'models/norms/power_norm.py'

METHODS = (
  (
    'registry.py',
    'if value is None and types.NoneType in typing.get_args(annotation):',
    'if value is None:',
    K + 'registry.py',
  ),
  (
    'data/transforms/_spans.py',
    'np.sort(np.argsort(draws[: total - 1]',
    'np.sort(np.argsort(draws[: total - 1] * 0',
    U,
  ),
  (
    'data/transforms/_spans.py',
    'min(max(1, round(noise / mean)), noise, length - noise)',
    'max(1, round(noise / mean))',
    U,
  ),
  (
    'data/transforms/ul2.py',
    "OF = ('R', 'S', 'X'), (0, 0, 1, 2, 2, 2, 2)",
    "OF = ('R', 'S', 'X'), (0, 0, 1, 1, 2, 2, 2)",
    U,
  ),
  ('data/transforms/ul2.py', 'weights[0] = 0', 'pass', U),
  ('data/transforms/ul2.py', '& ~first).astype', ').astype', U),
  ('data/transforms/ul2.py', 'max(1, n // 2))\n      inputs', 'max(1, n))\n      inputs', U),
  (
    'models/mixers/gqa.py',
    'aligned=cache is None and not prefix',
    'aligned=cache is None',
    M + 'prefix.py',
  ),
  ('models/mixers/gqa.py', 'jnp.where(ctx.prefix_BT > 0, 0, k_pos)', 'k_pos', M + 'prefix.py'),
  ('models/mixers/cross_attention.py', 'k_segments=kept.segments_BS', 'k_segments=None', E),
  (
    'models/mixers/cross_attention.py',
    'kept = cache if ctx.memory is None else',
    'kept = cache if cache is not None else',
    E,
  ),
  ('models/residuals/pre_cross.py', 'ctx.replace(memory=None), own)', 'ctx, own)', E),
  (
    'models/architectures/encoder_decoder.py',
    "kinds.Memory(leave(x, own, 'encoder_final_norm'), segments)",
    "kinds.Memory(leave(x, own, 'encoder_final_norm'), segments * 0 + 1)",
    E,
  ),
  (
    'objectives/headless_cwt.py',
    'columns_N = real_N | ~jnp.any(real_N)',
    'columns_N = real_N | True',
    J + 'headless_cwt.py',
  ),
  ('objectives/headless_cwt.py', "couples='micro'", "couples='global'", J + 'headless_cwt.py'),
  (
    'objectives/electra.py',
    'label_BT = fake_BT != tokens_BT',
    'label_BT = overwritten(jnp.zeros_like(tokens_BT), places_BK, taken_BK, 1) > 0',
    J + 'electra.py',
  ),
  (
    'objectives/electra.py',
    'fake_BT = overwritten(tokens_BT,',
    'fake_BT = overwritten(masked_BT,',
    J + 'electra.py',
  ),
  (
    'objectives/electra.py',
    'jnp.maximum(judged_B, 1)',
    'jnp.maximum(places_B, 1)',
    J + 'electra.py',
  ),
  ('objectives/_common.py', 'z_BTV = jax.lax.stop_gradient(z_BTV)', 'pass', J + 'clm_sample.py'),
  ('optim/train_only.py', 'u if k else jnp.zeros_like(u)', 'u', C + 'surgery.py'),
  (
    'surgery/add_head.py',
    "'unembed': embed['table']",
    "'unembed': embed['table'] * 0",
    C + 'surgery.py',
  ),
  ('checks.py', "if model.encoders and 'encoder_tokens' not in row:", 'if False:', E),
  (
    'flops.py',
    'return p.share * rounds / (1 if s.shared else s.repeats)',
    'return p.share * rounds',
    K + 'flops.py',
  ),
  (
    'kernels/assignment/auction.py',
    'bids_EN = jnp.where(held_EN & exact, eps, bids_EN)',
    'pass',
    A,
  ),
  (
    'kernels/assignment/auction.py',
    'jnp.arange(places) < share_E[:, None]',
    'jnp.arange(places) < places - 1',
    A,
  ),
  (
    'kernels/assignment/auction.py',
    'return _filled(last.holder_N, share_E, real_N), last.round',
    'return last.holder_N, last.round',
    A,
  ),
  (
    'kernels/assignment/auction.py',
    'a_NE = jnp.where(usable_NE, a_NE, low) - top',
    'a_NE = jnp.where(usable_NE, a_NE, low)',
    A,
  ),
  (
    'models/ffn/base_layers.py',
    'groups = self.groups if ctx.train else None',
    'groups = self.groups',
    B,
  ),
  ('models/ffn/base_layers.py', "couples='micro'", "couples='none'", C + 'ffn.py'),
  ('models/ffn/_experts.py', "('mlp',), 'residual'), ZEROS)", "('mlp',), 'residual'))", B),
  (
    'models/ffn/_travel.py',
    'jnp.swapaxes(_swapped(a, names, 1, 0), 0, 1)',
    '_swapped(a, names, 1, 0)',
    B,
  ),
  ('models/ffn/_travel.py', 'first + jnp.arange(own)', 'jnp.arange(own)', B),
  (
    'models/architectures/_recursion_routers.py',
    'chosen_BT = top_BT if ctx.train else chosen_BT & (judge_BT > 0)',
    'chosen_BT = top_BT',
    R,
  ),
  (
    'models/architectures/_recursion_routers.py',
    'jnp.sum(p_BTR * hot_BTR, axis=-1)',
    'jnp.sum(favour_BTR * hot_BTR, axis=-1)',
    R,
  ),
  ('models/architectures/_recursion_routers.py', '1 / rounds - load_R', 'load_R - 1 / rounds', R),
  ('models/architectures/_recursion_select.py', 'jnp.where(held, segments, 0)', 'segments', R),
  (N, 'pull if real is None else jnp.where(real, pull, 0.0)', 'pull', P),
  (N, 'nu + token_mean(u * z, real)', 'nu + token_mean(u * z, None)', P),
  (N, 'jnp.where(k < self.warmup, 1', 'jnp.where(k <= self.warmup, 1', P),
  (N, "s if self.denominator == 'batch' else by", 'by', P),
  (N, 'jnp.where(jnp.any(real), s, psi2)', 's', P),
  ('train.py', '{**out.vars, **renewed}', 'out.vars', K + 'train_step.py'),
  ('objectives/_common.py', "[k for k in vars if k != 'backward']", 'list(vars)', K + 'vars.py'),
  (
    'evals/_glue_tasks.py',
    "('entailment', 'neutral', 'contradiction')",
    "('contradiction', 'entailment', 'neutral')",
    G,
  ),
  ('evals/_pairs.py', '[room - room // 2, room // 2]', '[room // 2, room - room // 2]', G),
  ('evals/_classifier.py', 'if not looks_back(', 'if looks_back(', H),
  ('evals/_finetune.py', 'jax.random.fold_in(key, 1), None', 'jax.random.key(1), None', H),
  (
    'evals/_glue_runner.py',
    'range(TUNING, TUNING + self._part.tuning_seeds)',
    'range(self._part.tuning_seeds)',
    H,
  ),
)
