"""The contract of evals: hand-scored miniatures, standard errors, independence of order, names that
say the protocol, clear refusals.
"""

import gzip
import json
import lzma
import math

import numpy as np
import pytest

import _rows
from lmjax import kinds
from lmjax import registry
from lmjax import specs
from lmjax.evals import _formats
from lmjax.evals import _paths
from lmjax.evals import _wikitext
from lmjax.evals import lambada
from lmjax.evals import multiple_choice
from lmjax.evals import perplexity

ROWS = (
  'perplexity(path="x.txt")',
  'lambada()',
  'lambada(mode="loose")',
  'blimp()',
  'multiple_choice(task="piqa")',
  'glue_finetuning()',
  'by_layer(path="x.txt")',
  *_rows.specs('eval'),
)


LOG_HALF = -math.log(2)


class Characters:
  """One id a character."""

  vocab_size, bos, eos, pad, mask = 0x110000, None, None, None, None

  def encode(self, text):
    return np.array([ord(c) for c in text])

  def decode(self, ids):
    return ''.join(map(chr, ids))


class Fake:
  """A language model of known log-probabilities: `told` maps (context, continuation) to
  (log-probability, greedy).
  """

  tokenizer = Characters()
  protocol = {'length': 64, 'prefix': 'bos'}

  def __init__(self, told=None, token=LOG_HALF, first=True):
    self.told, self.token, self.first, self.asked = told, token, first, []

  def loglikelihood(self, pairs):
    self.asked += pairs
    return [self.told(*p) if callable(self.told) else self.told[p] for p in pairs]

  def loglikelihood_tokens(self, pairs):
    decode = self.tokenizer.decode
    out = [self.told[decode(a), decode(b)] for a, b in pairs]
    return [(np.array([p]), np.array([hit])) for p, hit in out]

  def rolling(self, ids, stride=None):
    return np.full(len(ids) - (not self.first), self.token)

  def generate(self, prompts, max_tokens, stop=()):
    raise NotImplementedError


def write(path, rows):
  path.write_text(
    '\n'.join(r if isinstance(r, str) else json.dumps(r) for r in rows) + '\n', 'utf-8'
  )
  return str(path)


def run(spec, lm):
  """Scores by the name in front of the bracket."""
  found = registry.make('eval', spec)().run(lm)
  assert all(isinstance(s, kinds.Score) and isinstance(s.value, float) for s in found)
  assert all('length=64' in s.name and 'prefix=bos' in s.name for s in found)
  out = {s.name.split('[')[0]: s for s in found}
  assert len(out) == len(found)
  return out


def test_no_part_is_missing():
  assert {specs.call(r).name for r in ROWS} == _rows.names('eval')


def test_evals_with_a_file_of_their_own_by_hand(tmp_path):
  for by_hand in _rows.values('eval', 'by_hand').values():
    spec, told, want = by_hand(tmp_path)
    found = run(spec, Fake(**told))
    assert {k: s.value for k, s in found.items()} == pytest.approx(want)


# ---- LAMBADA

PASSAGES = [{'text': 'He gave her the ring'}, {'text': 'It was a cold day'}]
STRICT = {
  ('He gave her the', ' ring'): (-1.0, True),
  ('It was a cold', ' day'): (-2.0 - 1.0, False),
}
LOOSE = {('He gave her the rin', 'g'): (-0.5, True), ('It was a cold da', 'y'): (-1.5, True)}


def test_lambada_by_hand(tmp_path):
  path = write(tmp_path / 'lambada_x.jsonl', PASSAGES)
  found = run(f'lambada(path={path!r})', Fake(STRICT))
  assert found['accuracy'].value == 0.5 and found['accuracy'].stderr == pytest.approx(
    math.sqrt(0.25 / 1)
  )
  assert found['perplexity'].value == pytest.approx(
    7.389056, abs=1e-6
  )  # a word, not a token: exp((1 + 3) / 2)
  assert found['perplexity'].stderr == pytest.approx(
    math.exp(2) * np.std([1, 3], ddof=1) / math.sqrt(2)
  )
  assert 'file=lambada_x' in found['accuracy'].name and 'mode=strict' in found['accuracy'].name


def test_lambada_loose_scores_the_last_token_alone(tmp_path):
  path = write(tmp_path / 'lambada_x.jsonl', PASSAGES)
  found = run(f'lambada(path={path!r}, mode="loose")', Fake(LOOSE))
  assert found['accuracy'].value == 1.0 and 'mode=loose' in found['accuracy'].name
  assert found['perplexity'].value == pytest.approx(math.e)


def test_lambada_reads_both_forms(tmp_path):
  path = write(tmp_path / 'dev.txt', [p['text'] for p in PASSAGES])
  assert run(f'lambada(path={path!r})', Fake(STRICT))['accuracy'].value == 0.5
  assert run(f'lambada(path={path!r}, limit=1)', Fake(STRICT))['accuracy'].value == 1.0
  assert lambada.passages(_paths.find(path), None)[0] == ('He gave her the', ' ring')


# ---- multiple choice

CHOICES = {
  'question': 'Which?',
  'choices': {'text': ['four', 'twelve chars'], 'label': ['A', 'B']},
  'answerKey': 'B',
}
PROMPT = 'Question: Which?\nAnswer:'


def test_acc_and_acc_norm_disagree(tmp_path):
  path = write(
    tmp_path / 'arc.jsonl', [CHOICES, CHOICES | {'answerKey': 'A'}, CHOICES | {'answerKey': 'A'}]
  )
  told = {(PROMPT, ' four'): (-4.0, False), (PROMPT, ' twelve chars'): (-6.0, False)}
  found = run(f'multiple_choice(task="arc_easy", path={path!r})', Fake(told))
  acc, norm = found['arc_easy/acc'], found['arc_easy/acc_norm']  # -4 > -6, but -1 < -0.5
  assert acc.value == pytest.approx(2 / 3) and norm.value == pytest.approx(1 / 3)
  assert acc.stderr == pytest.approx(math.sqrt(2 / 9 / 2)) and 'n=3' in acc.name


def test_ties_go_to_the_first_and_empty_options_do_not_divide_by_zero():
  assert (
    multiple_choice.pick([-4.0, -6.0]) == 0 and multiple_choice.pick([-4.0, -6.0], [4, 12]) == 1
  )
  assert multiple_choice.pick([-2.0, -2.0, -1.0, -1.0]) == 2
  assert multiple_choice.pick([-2.0, -3.0], [0, 1]) == 0


ITEMS = {
  'piqa': (
    {'goal': 'G', 'sol1': 's', 'sol2': 't', 'label': 1},
    [('Question: G\nAnswer:', ' s'), ('Question: G\nAnswer:', ' t')],
    1,
  ),
  'winogrande': (
    {'sentence': 'Ann met Bo as _ ran off.', 'option1': 'Ann', 'option2': 'Bo', 'answer': '2'},
    [('Ann met Bo as Ann', ' ran off.'), ('Ann met Bo as Bo', ' ran off.')],
    1,
  ),
  'hellaswag': (
    {
      'activity_label': 'Run',
      'ctx_a': 'A man [x] runs.',
      'ctx_b': 'he',
      'endings': [' stops [title] End', 'goes.'],
      'label': '0',
    },
    [('Run: A man runs. He', ' stops. End'), ('Run: A man runs. He', ' goes.')],
    0,
  ),
  'boolq': (
    {'passage': 'P.', 'question': 'is it', 'answer': True},
    [('P.\nQuestion: is it?\nAnswer:', ' no'), ('P.\nQuestion: is it?\nAnswer:', ' yes')],
    1,
  ),
  'copa': (
    {
      'premise': 'It rained.',
      'choice1': 'He got wet.',
      'choice2': 'She slept.',
      'question': 'effect',
      'label': 0,
    },
    [('It rained therefore', ' he got wet.'), ('It rained therefore', ' she slept.')],
    0,
  ),
  'cb': (
    {'premise': 'P.', 'hypothesis': 'h', 'label': 2},
    [
      ('P.\nQuestion: h. True, False, or Neither?\nAnswer:', f' {o}')
      for o in ('True', 'False', 'Neither')
    ],
    2,
  ),
  'sciq': (
    {
      'support': ' S.',
      'question': 'Q?',
      'distractor1': 'a',
      'distractor2': 'b',
      'distractor3': 'c',
      'correct_answer': 'd',
    },
    [('S.\nQuestion: Q?\nAnswer:', f' {o}') for o in 'abcd'],
    3,
  ),
  'openbookqa': (
    {'question_stem': 'Q', 'choices': {'text': ['a', 'b'], 'label': ['A', 'B']}, 'answerKey': 'A'},
    [('Q', ' a'), ('Q', ' b')],
    0,
  ),
  'mmlu': (
    {'question': 'Q?', 'subject': 'high_school_art', 'choices': ['x', 'y'], 'answer': 1},
    [
      (
        'The following are multiple choice questions (with answers) about high school '
        'art.\n\nQ?\nA. x\nB. y\nAnswer:',
        f' {o}',
      )
      for o in 'AB'
    ],
    1,
  ),
  'commonsense_qa': (
    {'question': 'Q?', 'choices': {'text': ['x', 'y'], 'label': ['A', 'B']}, 'answerKey': 'B'},
    [('Question: Q?\nA. x\nB. y\nAnswer:', f' {o}') for o in 'AB'],
    1,
  ),
  'social_iqa': (
    {
      'context': 'C.',
      'question': 'Q?',
      'answerA': 'a',
      'answerB': 'b',
      'answerC': 'c',
      'label': '3',
    },
    [('Q: C. Q?\nA:', f' {o}') for o in 'abc'],
    2,
  ),
  'arc_easy': (CHOICES, [(PROMPT, ' four'), (PROMPT, ' twelve chars')], 1),
  'arc_challenge': (CHOICES, [(PROMPT, ' four'), (PROMPT, ' twelve chars')], 1),
  'basic_arithmetic': (CHOICES, [(PROMPT, ' four'), (PROMPT, ' twelve chars')], 1),
}


def test_every_task_has_a_worked_item():
  assert set(ITEMS) == set(_formats.FORMATS)


@pytest.mark.parametrize('task', _formats.FORMATS)
def test_prompts_are_those_of_the_harness(task, tmp_path):
  row, pairs, gold = ITEMS[task]
  path = write(tmp_path / 'rows.jsonl', [row])
  [item] = multiple_choice.read(_formats.FORMATS[task], _paths.find(path), None)
  assert item.pairs == pairs and item.gold == gold
  assert item.sizes == [len(p[1]) - 1 for p in pairs]  # the space in front is not counted
  told = {p: (-1.0 if i == gold else -9.0, False) for i, p in enumerate(pairs)}
  found = run(f'multiple_choice(task={task!r}, path={path!r})', Fake(told))
  assert found[f'{task}/acc'].value == 1.0 and found[f'{task}/acc'].stderr is None
  assert (f'{task}/acc_norm' in found) == _formats.FORMATS[task].norm


@pytest.mark.parametrize('task', _formats.FORMATS)
def test_real_files_are_read_whole(task, test_data, monkeypatch):
  monkeypatch.setenv('LMJAX_DATA', str(test_data))
  form = _formats.FORMATS[task]
  items = multiple_choice.read(form, _paths.find('', form.file), None)
  assert len(items) > 50 and all(
    len(i.pairs) > 1 and all(c.strip() for _, c in i.pairs) for i in items
  )
  if task != 'sciq':
    assert len({i.gold for i in items}) > 1


# ---- BLiMP


def blimp_rows():
  pair = lambda uid, good, bad: {'sentence_good': good, 'sentence_bad': bad, 'UID': uid}
  return [
    pair('one', 'a1', 'b1'),
    pair('one', 'a2', 'b2'),
    pair('two', 'c1', 'd1'),
    pair('two', 'c2', 'd2'),
    pair('two', 'c3', 'd3'),
  ]


BLIMP = {
  ('', k): (v, False)
  for k, v in dict(a1=-1, b1=-2, a2=-3, b2=-1, c1=-1, d1=-2, c2=-1, d2=-5, c3=-2, d3=-2).items()
}


def test_blimp_averages_paradigms(tmp_path):
  path = write(tmp_path / 'blimp.jsonl', blimp_rows())
  found = run(f'blimp(path={path!r})', Fake(BLIMP))
  assert found['one'].value == 0.5 and found['two'].value == pytest.approx(
    2 / 3
  )  # the tie is a miss
  assert found['average'].value == pytest.approx((0.5 + 2 / 3) / 2)
  errors = [math.sqrt(0.25 / 1), math.sqrt(2 / 9 / 2)]
  assert found['two'].stderr == pytest.approx(errors[1])
  assert found['average'].stderr == pytest.approx(math.hypot(*errors) / 2)
  assert 'paradigms=2' in found['average'].name
  assert run(f'blimp(path={path!r}, limit=1)', Fake(BLIMP))['average'].value == 1.0


# ---- order


@pytest.mark.parametrize(
  'spec, rows',
  [
    ('lambada', [{'text': f'the word {w}'} for w in ('one', 'two', 'three', 'seven')]),
    ('multiple_choice', [CHOICES | {'question': q} for q in 'abcd']),
    ('blimp', blimp_rows()),
  ],
)
def test_the_order_of_items_does_not_matter(tmp_path, spec, rows):
  def told(context, continuation):
    mark = sum(map(ord, context + continuation))
    return -1.0 - mark % 7, mark % 3 == 0

  task = ', task="arc_easy"' if spec == 'multiple_choice' else ''
  ask = lambda items: run(f'{spec}(path={write(tmp_path / "f.jsonl", items)!r}{task})', Fake(told))
  first, turned = ask(rows), ask(rows[::-1])
  assert first.keys() == turned.keys()
  for k in first:
    assert first[k].value == pytest.approx(turned[k].value, rel=1e-12) and first[
      k
    ].stderr == pytest.approx(turned[k].stderr, rel=1e-9)


# ---- perplexity


def test_perplexity_by_hand():
  """Megatron's WikiText-103: 270,329 tokens and 245,566 words, the first of each not scored."""
  tokens, words = 270_329 - 1, 245_566 - 1
  found = perplexity.summary([np.full(tokens, -2.5)], words=words, size=1_000_000)
  assert found['token_perplexity'][0] == pytest.approx(12.182494, abs=1e-6)
  assert found['word_perplexity'][0] == pytest.approx(15.675552, abs=1e-6)
  assert found['nll'] == (pytest.approx(2.5), pytest.approx(0, abs=1e-9))
  assert found['bits_per_byte'][0] == pytest.approx(2.5 * tokens / math.log(2) / 1e6)


def test_perplexity_of_a_uniform_model(tmp_path):
  text = 'Zwölf Boxkämpfer jagen\n'
  path = write(tmp_path / 't.txt', [text[:-1]])
  found = run(f'perplexity(path={path!r})', Fake(token=-math.log(50)))
  assert found['token_perplexity'].value == pytest.approx(50)
  assert (found['tokens'].value, found['words'].value, found['bytes'].value) == (
    len(text),
    3,
    len(text.encode()),
  )
  assert found['bits_per_byte'].value == pytest.approx(
    math.log2(50) * len(text) / len(text.encode())
  )
  assert found['word_perplexity'].value == pytest.approx(50 ** (len(text) / 3))
  assert 'stride=length' in found['nll'].name and 'file=t' in found['nll'].name
  assert 'stride=8' in run(f'perplexity(path={path!r}, stride=8)', Fake())['nll'].name


def test_a_first_token_that_is_not_scored_takes_a_word_with_it(tmp_path):
  path = write(tmp_path / 't.txt', ['one two three'])
  found = run(f'perplexity(path={path!r})', Fake(first=False))
  assert (found['tokens'].value, found['words'].value) == (len('one two three\n') - 1, 2)


def test_documents_are_divided_by_the_separator(tmp_path):
  path = write(tmp_path / 't.txt', ['one two<|end|>three<|end|>'])
  lengths = []
  lm = Fake()
  lm.rolling = lambda ids, stride=None: lengths.append(len(ids)) or np.full(len(ids), -1.0)
  found = run(f'perplexity(path={path!r}, separator="<|end|>")', lm)
  assert lengths == [7, 5] and found['words'].value == 3 and found['bytes'].value == 12


def test_the_standard_error_is_that_of_blocks():
  """Tokens within a block agree wholly, so the error is that of 40 values and not of 40 blocks of
  tokens.
  """
  rng = np.random.default_rng(0)
  means = rng.normal(3, 1, 40)
  found = perplexity.summary([-np.repeat(means, perplexity.BLOCK)], words=100, size=100)
  assert found['nll'][1] == pytest.approx(means.std(ddof=1) / math.sqrt(40))
  assert found['token_perplexity'][1] == pytest.approx(
    found['token_perplexity'][0] * found['nll'][1]
  )


def test_wikitext_is_detokenized_but_counted_as_stored(tmp_path):
  raw = (
    ' = Title = \n It \'s a well @-@ known ( 1 @,@ 000 @.@ 5 ) , " quoted " thing : yes ; it is . '
    '\n = = Part = = \n'
  )
  clean = _wikitext.detokenize(raw)
  assert (
    clean == ' = Title =\nIt\'s a well-known (1,000.5), "quoted" thing: yes; it is.\n== Part ==\n'
  )
  path = write(tmp_path / 'wiki.txt', [raw[:-1]])
  found = run(f'perplexity(path={path!r}, detokenize="wikitext")', Fake())
  assert (
    found['words'].value == len(raw.split())
    and found['bytes'].value == len(raw)
    and found['tokens'].value == len(clean)
  )
  assert 'detokenize=wikitext' in found['nll'].name


# ---- files


@pytest.mark.parametrize(
  'pack', [lambda b: b, lzma.compress, gzip.compress, 'zstd'], ids=['plain', 'xz', 'gz', 'zst']
)
def test_packed_files_are_read(tmp_path, pack):
  if pack == 'zstd':
    pack = pytest.importorskip('zstandard').ZstdCompressor().compress
  (tmp_path / 'f.jsonl').write_bytes(pack(b'{"text": "a b"}\n\n{"text": "c d"}'))
  assert _paths.rows(tmp_path / 'f.jsonl', ['text']) == [{'text': 'a b'}, {'text': 'c d'}]
  assert len(_paths.rows(tmp_path / 'f.jsonl', ['text'], limit=1)) == 1


def test_default_files_lie_in_the_data_folder(tmp_path, monkeypatch):
  for v in _paths.VARIABLES:
    monkeypatch.delenv(v, raising=False)
  with pytest.raises(ValueError, match='path=.*LMJAX_DATA'):
    run('lambada()', Fake(STRICT))
  monkeypatch.setenv('LMJAX_TEST_DATA', str(tmp_path))
  with pytest.raises(ValueError, match='lambada_openai_test.jsonl'):
    run('lambada()', Fake(STRICT))
  (tmp_path / 'eval').mkdir()
  (tmp_path / 'eval' / 'lambada_openai_test.jsonl.gz').write_bytes(
    gzip.compress('\n'.join(map(json.dumps, PASSAGES)).encode())
  )
  found = run('lambada()', Fake(STRICT))
  assert 'file=lambada_openai_test,' in found['accuracy'].name
  monkeypatch.setenv('LMJAX_DATA', str(tmp_path / 'other'))  # goes before the other
  with pytest.raises(ValueError, match='other'):
    run('lambada()', Fake(STRICT))


@pytest.mark.parametrize(
  'spec, content, words',
  [
    ('lambada', b'', 'is empty'),
    ('lambada', b' \n', 'is empty'),
    ('lambada', b'{"text": "a b"}\n{"txt": 1}', "line 2.*'text'"),
    ('lambada', b'{"text": "a b"}\n{', 'line 2: not JSON'),
    ('lambada', b'{"text": "word"}', 'passage 1'),
    ('lambada', b'[1]', 'line 1'),
    ('lambada', b'{"text": "a b "}', 'passage 1'),
    ('lambada', b'\xff\xfe', 'not UTF-8'),
    ('lambada', lzma.compress(b'x' * 99)[:40], 'damaged'),
    ('blimp', b'{"sentence_good": "a", "UID": "u"}', 'sentence_bad'),
    ('perplexity', b'', 'is empty'),
    (
      'multiple_choice',
      b'{"goal": "g", "sol1": "a", "sol2": "b", "label": 2}',
      'item 1.*none of the 2',
    ),
    ('multiple_choice', b'{"goal": "g", "sol1": "a", "sol2": "b"}', "line 1.*'label'"),
  ],
)
def test_bad_files_are_named(tmp_path, spec, content, words):
  path = tmp_path / 'bad.jsonl'
  path.write_bytes(content)
  task = ', task="piqa"' if spec == 'multiple_choice' else ''
  with pytest.raises(ValueError, match=words) as e:
    run(f'{spec}(path={str(path)!r}{task})', Fake({}))
  assert 'bad.jsonl' in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize(
  'spec',
  [
    'lambada(limit=0)',
    'lambada(mode="free")',
    'blimp(limit=-1)',
    'multiple_choice(task="hellaswg")',
    'multiple_choice()',
    'perplexity()',
    'perplexity(path="x", stride=0)',
    'perplexity(path="x", detokenize="wiki")',
    'lambda()',
    'glue_finetuning(tasks="rt")',
    'glue_finetuning(tasks="rte, rte")',
    'glue_finetuning(seeds=0)',
    'glue_finetuning(tuning_seeds=0)',
    'glue_finetuning(epochs=0)',
    'glue_finetuning(lr=0)',
    'glue_finetuning(lr=())',
    'glue_finetuning(lr=(1e-5, True))',
    'glue_finetuning(batch=(16, 8.5))',
    'glue_finetuning(keep="first")',
    'glue_finetuning(warmup=1)',
    'glue_finetuning(dropout=1)',
    'glue_finetuning(decay=-1)',
    'glue_finetuning(b2=1)',
    'glue_finetuning(clip=-1)',
    'glue_finetuning(layer_decay=0)',
    'glue_finetuning(length=7)',
    'glue_finetuning(limit=0)',
  ],
)
def test_wrong_arguments_are_refused(spec):
  with pytest.raises(specs.SpecError):
    registry.make('eval', spec)


def test_a_missing_file_is_named():
  with pytest.raises(ValueError, match='nowhere.txt.*no such file'):
    run('perplexity(path="nowhere.txt")', Fake())


def test_variables_and_homes_are_expanded(tmp_path, monkeypatch):
  """As in paths of data: a recipe names $LMJAX_DATA in both."""
  monkeypatch.setenv('HERE', str(tmp_path))
  monkeypatch.setenv('HOME', str(tmp_path))
  for name in ('a.txt', 'RTE.train.tsv', 'RTE.dev.tsv'):
    (tmp_path / name).write_text('a')
  for place in ('$HERE', '~'):
    registry.make('eval', f'perplexity(path="{place}/a.txt")')()
    registry.make('eval', f'glue_finetuning(tasks="rte", path="{place}")')()
