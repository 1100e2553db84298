"""A run's model as lm-evaluation-harness asks it (Gao et al., https://doi.org/10.5281/zenodo.12608602).

Requests of a task become one call of `lmjax.lm.LM` each, which sorts them into batches of few
shapes; results come back in the order of the requests. Rules of the harness that are kept here:

  rolling        the stream prefix + text is scored in pieces of `length` tokens, each token once,
                 and every piece sees the `length` tokens before its end
  generate_until greedy text or samples (`gen_kwargs`), ended before the first of `until` and at the
                 end token, after `max_gen_toks` tokens at most; contexts are cut from the left to
                 what leaves room
  prefix         a text without context begins with what began texts in training; where nothing did,
                 with bos, or eos in a tokenizer that has no bos

Differences: a continuation of more tokens than the model sees is scored in pieces of half of that,
where the harness's own models read a part of it; a rolling text of a model whose texts begin with
bos has it once, where theirs read it twice and score the second.
"""

import importlib
import json
from typing import Any, Sequence

import numpy as np

from lmjax import files
from lmjax import lm as lm_lib
from lmjax import progress
from lmjax import registry
from lmjax.interop import chat as chat_lib
from lmjax.interop import gen_kwargs

PREFIXES = ('run', 'bos', 'eos')


class Requests:
  """Answers to the three kinds of requests; each has `args`, the harness's tuple.

  model: `lm.LM`; chat: the template of tasks as chats, whose tokenizer the model has to have then.
  Raises kinds.Unsupported for a model that has no likelihoods.
  """

  def __init__(self, model: lm_lib.LM, chat: chat_lib.Chat | None = None):
    model.require_likelihoods()
    super().__init__()  # of the harness, see `harness_model`
    self.model, self.chat = model, chat

  def loglikelihood(self, requests: Sequence[Any], **_) -> list[tuple[float, bool]]:
    """(sum of log-probabilities in nats, whether greedy decoding gives it) for each (context,
    continuation).
    """
    return self.model.loglikelihood([r.args for r in requests])

  def loglikelihood_rolling(self, requests: Sequence[Any], **_) -> list[float]:
    """The sum of log-probabilities, in nats, of all tokens for each (text,)."""
    model, pairs, owners = self.model, [], []
    front = [] if model.prefix is None else [model.prefix]
    for i, r in enumerate(requests):
      found = pieces(front, [int(t) for t in model.tokenizer.encode(r.args[0])], model.length)
      pairs += found
      owners += [i] * len(found)
    out = np.zeros(len(requests))
    for i, (logp, _) in zip(owners, model.loglikelihood_tokens(pairs)):
      out[i] += logp.sum()
    return out.tolist()

  def generate_until(self, requests: Sequence[Any], **_) -> list[str]:
    """The text that follows for each (context, settings), see `gen_kwargs`. Raises ValueError
    naming a setting that is not known.
    """
    groups: dict[gen_kwargs.Settings, list[int]] = {}
    for i, r in enumerate(requests):
      groups.setdefault(gen_kwargs.read(r.args[1], self.model.length), []).append(i)
    out = [''] * len(requests)
    for how, members in groups.items():
      texts = self.model.generate(
        [requests[i].args[0] for i in members], how.most, how.until, rule=how.rule, seed=how.seed
      )
      for i, text in zip(members, texts):
        out[i] = text
    return out

  def apply_chat_template(
    self, chat_history: chat_lib.Messages, add_generation_prompt: bool = True
  ) -> str:
    """See `Chat.render`. Raises ValueError where no template was asked for, or it cannot be."""
    return self._asked().render(chat_history, add_generation_prompt)

  def chat_template(self, chat_template: bool | str = False) -> str:
    """The template, or nothing where none is asked for."""
    return self._asked().template if chat_template else ''

  @property
  def tokenizer_name(self) -> str:
    """What requests that the harness keeps depend on: the tokenizer and the template."""
    return f'lmjax-{self._asked().fingerprint}'

  def _asked(self) -> chat_lib.Chat:
    if self.chat is None:
      raise ValueError('tasks as chats need a chat template: --apply_chat_template asks for one')
    return self.chat


def pieces(front: list[int], ids: list[int], length: int) -> list[tuple[list[int], list[int]]]:
  """(context, continuation) pairs that score every token of `ids` once, by the rule above."""
  stream, out = front + ids, []
  for done in range(len(front), len(stream), length):
    stop = min(done + length, len(stream))
    out.append((stream[max(0, stop - length - 1) : done], stream[done:stop]))
  return out


def language_model(
  run: Any, params, vars, prefix: str = 'run', chat: chat_lib.Chat | None = None
) -> lm_lib.LM:
  """The model of a run; prefix: what stands before a text without context, by the rule above, or
  the tokenizer's bos or eos. chat: whose tokenizer reads texts. Raises ValueError where it has no
  such token.
  """
  from lmjax import run as run_lib

  own, tok = run_lib.language_model(run, params, vars), run.tokenizer
  found = own.prefix if prefix == 'run' else getattr(tok, prefix)
  if found is None and prefix == 'run':
    found = tok.eos if tok.bos is None else tok.bos
  if found is None:
    raise ValueError(
      f'--prefix={prefix}: the tokenizer {run.config["data"]["tokenizer"]} has '
      f'{"neither a bos nor an eos" if prefix == "run" else f"no {prefix}"} token to stand before '
      'a text without context'
    )
  return lm_lib.LM(
    own.architecture,
    own.variables,
    tok if chat is None else chat.tokenizer,
    length=own.length,
    prefix=found,
    bos=own.bos,
    task=own.prompts.task,
    name=own.prompts.name,
  )


def library(name: str = 'lm_eval'):
  """A module of the harness. Raises ValueError where it is not installed."""
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as e:
    raise ValueError(
      f"lm-evaluation-harness needs the module {e.name}: pip install 'lmjax[lm_eval]'"
    ) from None


def harness_model(model: lm_lib.LM, chat: chat_lib.Chat | None = None):
  """`Requests` as an `lm_eval.api.model.LM`, for `lm_eval.simple_evaluate(model=...)`."""
  base = library('lm_eval.api.model').LM
  return type('Lmjax', (Requests, base), {})(model, chat)


def evaluate(
  model: lm_lib.LM,
  tasks: Sequence[str],
  *,
  include_path: str = '',
  chat: chat_lib.Chat | None = None,
  **options: Any,
) -> dict[str, Any]:
  """What `lm_eval.simple_evaluate` finds. include_path: a folder of further tasks. chat: the
  template of all prompts. Raises ValueError for tasks that are not known, and where files of one
  cannot be read.
  """
  ask = harness_model(model, chat)
  if include_path and not files.path_of(files.expanded(include_path)).is_dir():
    raise ValueError(f'--include_path={include_path}: there is no such folder')
  manager = library('lm_eval.tasks').TaskManager(include_path=include_path or None)
  for name in tasks:
    if name not in manager.all_tasks and not manager.match_tasks([name]):
      raise ValueError(
        f'--tasks={name}: the harness has no such task'
        f'{registry.nearest(name, manager.all_tasks, ".")} --include_path=FOLDER adds those of a '
        'folder'
      )
  try:
    return library('lm_eval').simple_evaluate(
      model=ask,
      tasks=manager.match_tasks(list(tasks)),
      task_manager=manager,
      apply_chat_template=chat is not None,
      **options,
    )
  except OSError as e:
    raise ValueError(f'--tasks={",".join(tasks)}: {e}') from e


def command(flags) -> str:
  """`python -m lmjax.interop lm_eval`: what to tell."""
  from lmjax import restore
  from lmjax import run as run_lib

  library()
  run_lib.compilation_cache()
  run, params, vars, step = restore.load(flags.source, allow_code=flags.allow_code)
  asked = flags.apply_chat_template
  chat = chat_lib.of(run, asked) if asked else None
  model = language_model(run, params, vars, flags.prefix, chat)
  model.require_likelihoods()
  progress.say(f'step {step} of {flags.source}: {model.protocol}')
  with run.choices():
    found = evaluate(
      model,
      [t for t in flags.tasks.split(',') if t],
      include_path=flags.include_path,
      chat=chat,
      limit=flags.limit,
      num_fewshot=flags.num_fewshot,
      gen_kwargs=flags.gen_kwargs or None,
      log_samples=bool(flags.out),
    )
  found['config'] |= dict(model='lmjax', run=str(flags.source), step=step, **model.protocol)
  if chat is not None:
    found['config'] |= dict(chat_template=chat.name, chat_template_fingerprint=chat.fingerprint)
  if flags.out:
    path = files.path_of(files.expanded(flags.out))
    with files.kept(path):
      files.write(path, json.dumps(found, indent=2, default=str) + '\n')
  table = library('lm_eval.utils').make_table
  return '\n'.join(table(found, k) for k in ('results', 'groups') if found.get(k))
