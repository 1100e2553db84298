"""What decoding rules that promise speed are worth: drafts from one stream, and drafted tokens.

command: python experiments/perf/decoding.py --target=RUN [--draft=RUN] [--ngrams=FILE]

Two races on the checkpoints of run directories, each in turns, so that whatever else the machine
does hits all alike; ratios are medians over rounds, with the least and the largest.

  drafts       k drafts by superposed decoding, against k runs of nucleus sampling, and against k
               rows of one batch. Beside it what the drafts are worth: loss a token under the model
               itself, scored anew, mean and best of k. Without --ngrams alpha is 0.
  speculative  speculative decoding with --draft, against plain decoding, sampled and greedy, one
               prompt at a time. Tokens a pass of the target are measured, and those of the formula
               stand beside them, from alpha, the mean of sum min(p, q) over the plain texts.

A first turn of each, which compiles, does not count.
"""

import argparse
import json
import pathlib
import statistics
import time

PROMPTS = ('Once upon a time', 'The little dog', 'One day')


def load(folder: str):
  """(run, variables)."""
  from lmjax import restore

  run, params, vars, step = restore.load(folder)
  print(f'{folder}: step {step}, {run.config["model"]["depth"]} layers', flush=True)
  return run, {'params': params, **vars}


def race(contestants: dict, rounds: int) -> tuple[dict, dict]:
  """(seconds of every turn, what the last turn gave) of functions without arguments."""
  given = {name: fn() for name, fn in contestants.items()}  # compiles
  turns = {name: [] for name in contestants}
  for n in range(rounds):
    for name, fn in contestants.items():
      begun = time.monotonic(), time.process_time()
      given[name] = fn()
      ended = time.monotonic(), time.process_time()
      turns[name].append(dict(wall=ended[0] - begun[0], cpu=ended[1] - begun[1]))
    text = '  '.join(f'{name} {t[-1]["wall"]:.3f} s' for name, t in turns.items())
    print(f'round {n}: {text}', flush=True)
  return turns, given


def ratio(turns: dict, a: str, b: str, key: str = 'wall') -> dict:
  """How many times faster a is than b."""
  found = [y[key] / x[key] for x, y in zip(turns[a], turns[b])]
  return dict(median=statistics.median(found), min=min(found), max=max(found))


def ratios(turns: dict, pairs) -> dict:
  return {f'{a} / {b}, {key}': ratio(turns, a, b, key) for a, b in pairs for key in ('wall', 'cpu')}


def drafts(target, prompts, flags) -> dict:
  """The race of k drafts, and losses of all of them under the model."""
  from lmjax import generate

  run, variables = target
  how = dict(max_tokens=flags.draft_tokens, tokenizer=run.tokenizer, eos=run.tokenizer.eos)
  ask = lambda p, **k: generate.generate(run.architecture, variables, p, **how, **k)
  grams = f'ngrams={flags.ngrams!r}' if flags.ngrams else 'alpha=0.0'
  rule = f'superposed_decoding(k={flags.k}, {grams})'
  nucleus = f'top_p(p={flags.p})'
  contestants = {
    'superposed': lambda: [ask([p], rule=rule)[0].texts for p in prompts],
    'nucleus, one after another': lambda: [
      [ask([p], rule=nucleus, seed=s)[0] for s in range(flags.k)] for p in prompts
    ],
    'nucleus, one batch': lambda: [ask([p] * flags.k, rule=nucleus) for p in prompts],
  }
  turns, given = race(contestants, flags.rounds)
  names = list(contestants)
  return dict(
    rule=rule,
    ratios=ratios(turns, [(names[0], n) for n in names[1:]]),
    losses={name: losses(target, prompts, texts) for name, texts in given.items()},
    turns=turns,
  )


def losses(target, prompts, texts) -> dict:
  """Nats a token under the model itself: mean of all drafts, mean over prompts of the best."""
  from lmjax import run as run_lib

  run, variables = target
  vars = {k: v for k, v in variables.items() if k != 'params'}
  model = run_lib.language_model(run, variables['params'], vars)
  each = []
  for prompt, drafts in zip(prompts, texts):
    kept = [d for d in drafts if len(d)]
    found = model.loglikelihood_tokens([(prompt, d) for d in kept]) if kept else []
    each.append([float(-logp.mean()) for logp, _ in found])
  each = [e for e in each if e]
  distinct = [len({tuple(d) for d in drafts}) for drafts in texts]
  return dict(
    mean=statistics.mean(x for e in each for x in e),
    best=statistics.mean(map(min, each)),
    distinct=statistics.mean(distinct),
  )


def speculative(target, draft, prompts, flags) -> dict:
  """The race against plain decoding; tokens a pass, measured and by the formula."""
  import numpy as np

  from lmjax import generate
  from lmjax.decoding import speculative_decoding

  run, variables = target
  models = [(run.architecture, variables), (draft[0].architecture, draft[1])]
  how = dict(max_tokens=flags.tokens)  # no eos: all write as many tokens

  def ask(rule, n):
    found = [generate.decoded(models[:n], [p], rule=rule, **how) for p in prompts]
    return np.stack([f[0][0, 0, : flags.tokens] for f in found]), sum(int(f[2][0]) for f in found)

  rules = {'sampled': flags.rule, 'greedy': 'greedy()'}
  contestants = {}
  for name, rule in rules.items():
    spec = f'speculative_decoding(gamma={flags.gamma}, rule={rule})'
    contestants[f'plain, {name}'] = lambda rule=rule: ask(rule, 1)
    contestants[f'speculative, {name}'] = lambda spec=spec: ask(spec, 2)
  turns, given = race(contestants, flags.rounds)
  out = dict(
    rules=rules,
    gamma=flags.gamma,
    ratios=ratios(turns, [(f'speculative, {n}', f'plain, {n}') for n in rules]),
    greedy_texts_equal=bool((given['plain, greedy'][0] == given['speculative, greedy'][0]).all()),
    tokens_a_pass={},
    turns=turns,
  )
  for name, rule in rules.items():
    alpha = overlap(models, rule, prompts, given[f'plain, {name}'][0])
    out['tokens_a_pass'][name] = dict(
      measured=len(prompts) * flags.tokens / given[f'speculative, {name}'][1],
      alpha=alpha,
      formula=speculative_decoding.expected_tokens(alpha, flags.gamma),
    )
  return out


def overlap(models, rule: str, prompts, texts) -> float:
  """The mean of sum min(p, q) over all positions of the texts, both after the rule."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from lmjax import kinds
  from lmjax.decoding import _base
  from lmjax.nn import embedding

  made, found = _base.rule(rule), []

  @jax.jit
  def distributions(variables, tokens_1T):
    ctx = kinds.Ctx(positions_BT=jnp.arange(tokens_1T.shape[1])[None])
    outputs = [net.apply(v, tokens_1T, ctx) for (net, _), v in zip(models, variables)]
    return [jax.nn.softmax(made.filter(embedding.logits(o)[0]), axis=-1) for o in outputs]

  vocab = models[0][0].model.vocab
  for prompt, text in zip(prompts, texts):
    tokens = np.concatenate([prompt, text])[None, :-1].astype(np.int32)
    p, q = (
      np.asarray(x)[len(prompt) - 1 :, :vocab]
      for x in distributions([v for _, v in models], tokens)
    )
    found.append(np.minimum(p, q).sum(axis=-1))
  return float(np.mean(np.concatenate(found)))


def show(found: dict):
  for name, part in found.items():
    for pair, r in part.get('ratios', {}).items():
      print(f'{name}: {pair}: {r["median"]:.2f} ({r["min"]:.2f} to {r["max"]:.2f}) times as fast')
    for rule, t in part.get('tokens_a_pass', {}).items():
      print(
        f'{name}: {rule}: {t["measured"]:.2f} tokens a pass, {t["formula"]:.2f} by the formula at '
        f'alpha {t["alpha"]:.3f}'
      )
    for rule, l in part.get('losses', {}).items():
      print(
        f'{name}: {rule}: loss {l["mean"]:.3f} nats a token, best of k {l["best"]:.3f}, '
        f'{l["distinct"]:.1f} distinct'
      )


def main():
  p = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  p.add_argument('--target', required=True, help='a run directory')
  p.add_argument('--draft', help='the run directory of a smaller model of the same tokenizer')
  p.add_argument('--ngrams', help='a file that python -m lmjax.ngrams wrote')
  p.add_argument('--prompt', action='append', help='may be given several times')
  p.add_argument('--k', type=int, default=3, help='drafts')
  p.add_argument('--p', type=float, default=0.9, help='of nucleus sampling')
  p.add_argument('--draft-tokens', type=int, default=10, help='tokens of a draft')
  p.add_argument('--gamma', type=int, default=4)
  p.add_argument('--rule', default='temperature()', help='of the sampled race; filters')
  p.add_argument('--tokens', type=int, default=64, help='tokens of the speculative race')
  p.add_argument('--rounds', type=int, default=7)
  p.add_argument('--out', help='a .json file for everything that was found')
  flags = p.parse_args()
  import jax

  from lmjax import prompts as prompts_lib

  target = load(flags.target)
  run = target[0]
  prompts = [
    prompts_lib.prompt_ids(run.tokenizer, text, run.config['data']['bos'])
    for text in flags.prompt or PROMPTS
  ]
  found = dict(drafts=drafts(target, prompts, flags))
  if flags.draft:
    draft = load(flags.draft)
    if draft[0].tokenizer.fingerprint() != run.tokenizer.fingerprint():
      raise SystemExit(f'{flags.draft} has another tokenizer than {flags.target}')
    found['speculative'] = speculative(target, draft, prompts, flags)
  show(found)
  if flags.out:
    about = dict(device=jax.devices()[0].device_kind, jax=jax.__version__, flags=vars(flags))
    pathlib.Path(flags.out).write_text(json.dumps(about | found, indent=1) + '\n')


if __name__ == '__main__':
  main()
