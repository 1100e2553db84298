"""Tasks of lm-evaluation-harness made of local files: the same answers, request by request, as of
the harness's own model for `transformers` on the same weights.
"""

import json

import pytest

import _torch
from lmjax import restore
from lmjax.interop import __main__ as command
from lmjax.interop import chat
from lmjax.interop import harness
from lmjax.interop.hf import _exporting
from lmjax.interop.hf import _importing
from lmjax.interop.hf import _tokenizer
from lmjax.tokenizers import _bpe_files

pytestmark = pytest.mark.slow

LENGTH = 40
ROWS = [
  dict(
    question='Which is a fruit?',
    options=['an apple', 'a stone', 'rain'],
    label=0,
    text='Ab c. ' * n,
  )
  for n in (1, 5, 23)
] + [dict(question='Caf\u00e9 or tea? ' * 9, options=['tea', 'none', 'no'], label=2, text='\u00e9')]
TASKS = dict(
  local_choice="""
output_type: multiple_choice
doc_to_text: "{{question}} "
doc_to_choice: "{{options}}"
doc_to_target: label
""",
  local_rolling="""
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: bits_per_byte
""",
  local_writing="""
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{options[0]}}"
generation_kwargs:
  until: ["{stop}"]
  max_gen_toks: 20
  do_sample: false
metric_list:
  - metric: exact_match
""",
)


@pytest.fixture(scope='module')
def library():
  return pytest.importorskip('lm_eval', reason='lm_eval is in the extra test-heavy')


@pytest.fixture(scope='module')
def bos(request):
  """Whether texts begin with that token."""
  return getattr(request, 'param', True)


@pytest.fixture(scope='module')
def run_dir(library, bos, tmp_path_factory):
  """A run directory, and `export` of it beside it."""
  at = tmp_path_factory.mktemp('runs')
  sizes = _torch.LLAMA | dict(max_position_embeddings=LENGTH, vocab_size=260)
  net = _torch.model(_torch.config('LlamaConfig', **sizes))
  net.save_pretrained(at / 'in')
  _importing.to_run(str(at / 'in'), str(at / 'run'), tokenizer='bytes()')
  config = json.loads((at / 'run' / 'config.json').read_text())
  config['data']['bos'] = bos
  (at / 'run' / 'config.json').write_text(json.dumps(config))
  _exporting.to_folder(str(at / 'run'), str(at / 'export'))
  return at / 'run'


@pytest.fixture(scope='module')
def tasks(tmp_path_factory):
  """A folder of tasks on one file of rows."""
  at = tmp_path_factory.mktemp('tasks')
  (at / 'rows.json').write_text('\n'.join(map(json.dumps, ROWS)))
  for name, text in TASKS.items():
    (at / f'{name}.yaml').write_text(
      f'task: {name}\ndataset_path: json\ntest_split: train\n'
      f'dataset_kwargs:\n  data_files: {at}/rows.json\n' + text.replace('{stop}', 'e')
    )
  return at


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
  import datasets

  monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)


def answers(found):
  """(name, document, responses) of every request, in the order of the documents."""
  return [
    (name, s['doc_id'], s['resps'])
    for name, samples in sorted(found['samples'].items())
    for s in sorted(samples, key=lambda s: s['doc_id'])
  ]


@pytest.mark.parametrize('bos', [False, True], indirect=True, ids=['', 'bos'])
def test_answers_are_those_of_the_harness_on_transformers(library, run_dir, tasks, bos):
  huggingface = pytest.importorskip('lm_eval.models.huggingface')
  import transformers

  run, params, vars, _ = restore.load(run_dir)
  own = harness.language_model(run, params, vars, 'bos')
  net = transformers.AutoModelForCausalLM.from_pretrained(run_dir.parent / 'export')
  tok = transformers.AutoTokenizer.from_pretrained(run_dir.parent / 'export')
  theirs = huggingface.HFLM(
    pretrained=net.eval(), tokenizer=tok, device='cpu', dtype='float32', max_length=LENGTH
  )
  how = dict(log_samples=True, bootstrap_iters=0)
  mine = harness.evaluate(own, list(TASKS), include_path=str(tasks), **how)
  manager = library.tasks.TaskManager(include_path=str(tasks))
  want = library.simple_evaluate(model=theirs, tasks=list(TASKS), task_manager=manager, **how)
  mine_, want_ = answers(mine), answers(want)
  assert len(mine_) == len(TASKS) * len(ROWS)
  for (name, doc, a), (other, number, b) in zip(mine_, want_, strict=True):
    assert (name, doc) == (other, number)
    if name == 'local_choice':
      for ((x, greedy),), ((y, best),) in zip(a, b, strict=True):
        assert abs(x - y) < 1e-4 and greedy == best, (doc, x, y)
    elif name == 'local_rolling':
      if bos:  # there it is read twice, and scored once, see `harness`
        continue
      assert abs(a[0][0] - b[0][0]) < 1e-4, (doc, a, b)
    else:
      assert a == b, doc
  written = [a[0][0] for name, _, a in mine_ if name == 'local_writing']
  assert any(written) and all('e' not in t for t in written)
  assert mine['results']['local_choice']['acc,none'] == want['results']['local_choice']['acc,none']


def test_the_command_writes_scores_and_samples(library, run_dir, tasks, bos, tmp_path, capsys):
  flags = [f'--include_path={tasks}', '--limit=2', f'--out={tmp_path / "found.json"}']
  assert command.main(['lm_eval', str(run_dir), '--tasks=local_choice,local_writing', *flags]) == 0
  assert '|local_choice |' in capsys.readouterr().out
  found = json.loads((tmp_path / 'found.json').read_text())
  assert found['config']['prefix'] == ('bos+' if bos else 'eos') and found['config']['step'] == 0
  assert found['n-samples']['local_choice']['effective'] == 2
  assert (
    len(found['samples']['local_writing']) == 2 and 'acc,none' in found['results']['local_choice']
  )


def test_chats_are_those_of_the_harness_on_transformers(library, tasks, tmp_path, capsys):
  """A template of a folder: the same prompts, ids and end token, hence the same answers."""
  huggingface = pytest.importorskip('lm_eval.models.huggingface')
  import transformers

  path, length = tmp_path / 'in', 120
  sizes = _torch.LLAMA | dict(max_position_embeddings=length, bos_token_id=256, eos_token_id=257)
  net = _torch.model(_torch.config('LlamaConfig', **sizes))
  net.save_pretrained(path)
  added = {k: (256 + i, True) for i, k in enumerate(('<s>', '</s>', '<|user|>', '<|end|>'))}
  text = _tokenizer.file({c: b for b, c in enumerate(_bpe_files.alphabet())}, [], added)
  (path / 'tokenizer.json').write_text(json.dumps(text))
  turn = '{% for m in messages %}<|user|>{{ m.role }}: {{ m.content | trim }}<|end|>{% endfor %}'
  named = dict(bos_token='<s>', eos_token='<|end|>', tokenizer_class='PreTrainedTokenizerFast')
  settings = dict(named, chat_template=turn + '{% if add_generation_prompt %}<|user|>{% endif %}')
  (path / 'tokenizer_config.json').write_text(json.dumps(settings))
  _importing.to_run(str(path), str(tmp_path / 'run'))
  run, params, vars, _ = restore.load(tmp_path / 'run')
  found = chat.of(run)
  own = harness.language_model(run, params, vars, chat=found)
  theirs = huggingface.HFLM(
    pretrained=net,
    tokenizer=transformers.AutoTokenizer.from_pretrained(path),
    device='cpu',
    dtype='float32',
    max_length=length,
  )
  names = ['local_choice', 'local_writing']
  how = dict(log_samples=True, bootstrap_iters=0, num_fewshot=1)
  mine = harness.evaluate(own, names, include_path=str(tasks), chat=found, **how)
  manager = library.tasks.TaskManager(include_path=str(tasks))
  want = library.simple_evaluate(
    model=theirs, tasks=names, task_manager=manager, apply_chat_template=True, **how
  )
  for (name, doc, a), (_, _, b) in zip(answers(mine), answers(want), strict=True):
    if name == 'local_choice':
      assert all(abs(x[0][0] - y[0][0]) < 1e-4 for x, y in zip(a, b, strict=True)), (doc, a, b)
    else:
      assert a == b, doc
  asked = [s['arguments'][0][0] for s in mine['samples']['local_writing']]
  assert all(t.startswith('<|user|>user: ') and '<|end|><|user|>ass' in t for t in asked)
  flags = [f'--include_path={tasks}', '--apply_chat_template', f'--out={tmp_path / "a.json"}']
  flags += ['--tasks=local_writing', '--gen_kwargs=do_sample=True,temperature=3,top_p=0.9,seed=1']
  assert command.main(['lm_eval', str(tmp_path / 'run'), *flags]) == 0
  sampled = json.loads((tmp_path / 'a.json').read_text())
  assert sampled['config']['chat_template'] == 'default'
  texts = lambda f: [s['resps'] for s in f['samples']['local_writing']]
  assert texts(sampled) != texts(mine)
  for seed, same in ((1, True), (2, False)):
    assert (
      command.main(['lm_eval', str(tmp_path / 'run'), *flags[:-1], f'{flags[-1][:-1]}{seed}']) == 0
    )
    again = json.loads((tmp_path / 'a.json').read_text())
    assert (texts(again) == texts(sampled)) == same


@pytest.mark.parametrize(
  'flags, words',
  [
    (['--tasks=local_choise', '--include_path={tasks}'], "did you mean 'local_choice'?"),
    (['--tasks=local_choice', '--include_path={tasks}/no'], '/no: there is no such folder'),
    (
      ['--tasks=local_writing', '--include_path={tasks}', '--gen_kwargs=max_gen_toks=40'],
      'max_gen_toks=40, and the model sees 40 tokens',
    ),
    (
      ['--tasks=local_writing', '--include_path={tasks}', '--apply_chat_template'],
      'of no folder that could have a chat template',
    ),
  ],
)
def test_one_sentence_says_what_cannot_be_done(library, run_dir, tasks, capsys, flags, words):
  assert command.main(['lm_eval', str(run_dir), *(f.format(tasks=tasks) for f in flags)]) == 2
  err = capsys.readouterr().err
  assert words in err and err.count('lmjax: ') == 1
