"""GLUE's files, rows and metrics: what is read, how sentences become tokens, figures by hand."""

import json
import lzma
import math

import numpy as np
import pytest
from scipy import stats

from lmjax.evals import _glue_metrics as metrics
from lmjax.evals import _glue_runner
from lmjax.evals import _glue_tasks as tasks
from lmjax.evals import _pairs

# ---- metrics


def test_matthews():
  assert metrics.matthews([1, 1, 1], [0, 1, 1]) == 0.0  # constant: 0, not NaN
  assert metrics.matthews([0, 0, 0], [0, 1, 1]) == 0.0 == metrics.matthews([0, 1], [1, 1])
  predicted, true = [1] * 6 + [0] * 4, [1] * 5 + [0] + [1] * 2 + [0] * 2  # TP 5, FP 1, FN 2, TN 2
  assert metrics.counts(predicted, true) == (5, 1, 2, 2)
  assert metrics.matthews(predicted, true) == pytest.approx((10 - 2) / math.sqrt(6 * 7 * 3 * 4))
  assert metrics.matthews([1, 0], [0, 1]) == -1.0


def test_f1():
  predicted, true = [1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 1, 1, 0]  # TP 3, FP 1, FN 2
  assert metrics.f1(predicted, true) == pytest.approx(0.666667, abs=1e-6)
  assert metrics.f1([0, 0], [0, 1]) == metrics.f1([0], [0]) == 0.0
  assert metrics.accuracy(predicted, true) == pytest.approx(4 / 7)


def test_correlations():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=50), rng.integers(0, 4, 50) + 0.0
  x[10:20] = x[0]
  assert metrics.pearson(x, y) == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-12)
  assert metrics.spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-12)
  assert metrics.pearson(3 * x + 7, y) == pytest.approx(metrics.pearson(x, y), abs=1e-12)
  assert metrics.pearson(-x, y / 5) == pytest.approx(-metrics.pearson(x, y), abs=1e-12)
  assert metrics.spearman(np.exp(x), y) == pytest.approx(metrics.spearman(x, y), abs=1e-12)
  assert metrics.ranks([0.3, 0.1, 0.3, 0.9]).tolist() == [2.5, 1, 2.5, 4]
  for f in (metrics.pearson, metrics.spearman):
    assert f(np.full(7, 0.1), np.arange(7)) == f(np.arange(7), np.full(7, 0.1)) == 0.0


@pytest.mark.parametrize(
  'name, names',
  [
    ('cola', ['matthews']),
    ('sst2', ['accuracy']),
    ('mrpc', ['f1', 'accuracy']),
    ('qqp', ['f1', 'accuracy']),
    ('stsb', ['pearson', 'spearman']),
    ('mnli', ['accuracy_matched', 'accuracy_mismatched']),
    ('qnli', ['accuracy']),
    ('rte', ['accuracy']),
    ('wnli', ['accuracy']),
  ],
)
def test_each_task_has_its_metrics(name, names):
  task = tasks.TASKS[name]
  z = np.array([[0.1] * task.outputs, np.eye(task.outputs)[-1]])
  labels = np.array([0, max(1, task.outputs - 1)])
  found = _glue_runner.judged(task, [(z, labels)] + [(z, 0 * labels)] * (len(task.dev) - 1))
  assert list(found.metrics) == names
  assert found.key == pytest.approx(np.mean(list(found.metrics.values())))
  values = dict.fromkeys(names, 1.0) | ({names[1]: 0.5} if name == 'mnli' else {})
  assert found.metrics == pytest.approx(values)


# ---- rows


class Words:
  """A number is a word."""

  def __init__(self, bos=90, eos=91):
    self.bos, self.eos = bos, eos


def row(sentences, length=20, style='bert', **how):
  given = [np.asarray(s, np.int32) for s in sentences]
  return _pairs.packed(given, _pairs.marks(Words(**how)), length, style).tolist()


def test_rows_by_hand():
  a, b = [1, 2, 3], [4, 5]
  assert row([a]) == [90, 1, 2, 3, 91] == row([a], style='roberta')
  assert row([a, b]) == [90, 1, 2, 3, 91, 4, 5, 91]
  assert row([a, b], style='roberta') == [90, 1, 2, 3, 91, 91, 4, 5, 91]
  assert row([a, b], bos=None) == [91, 1, 2, 3, 91, 4, 5, 91]
  assert row([a, b], eos=None) == [90, 1, 2, 3, 90, 4, 5, 90]
  assert row([a, b], length=6) == [90, 1, 2, 91, 4, 91]
  assert row([a, b], length=7, style='roberta') == [90, 1, 2, 91, 91, 4, 91]
  assert row([a], length=4) == [90, 1, 2, 91] and row([[], b]) == [90, 91, 4, 5, 91]


def test_the_longer_sentence_is_cut_first():
  for a in range(12):
    for b in range(12):
      for room in range(14):
        kept = [a, b]
        while sum(kept) > room:
          kept[0 if kept[0] > kept[1] else 1] -= 1
        assert _pairs.truncated([a, b], room) == kept
  assert _pairs.truncated([9], 4) == [4] and _pairs.truncated([3], 4) == [3]


def test_a_tokenizer_without_marks_is_refused():
  assert _pairs.marks(Words()).names == ('bos', 'eos')
  assert _pairs.marks(Words(eos=None)).names == ('bos', 'bos')
  assert _pairs.marks(Words(bos=0, eos=1))[:2] == (0, 1)
  with pytest.raises(ValueError, match='neither a bos nor an eos'):
    _pairs.marks(Words(None, None))


# ---- files

MNLI = 'index promptID pairID genre s1_parse s2_parse sentence1 sentence2 label1 gold_label'
STSB = 'index genre filename year old_index source1 source2 sentence1 sentence2 score'
PAIR = 'index sentence1 sentence2 label'
LAYOUT = {  # file -> lines, as in the distribution
  'CoLA/train.tsv': ['gj04\t1\t\tA "b.', 'gj04\t0\t*\tB a.'],
  'SST-2/train.tsv': ['sentence\tlabel', 'fine \t1', 'dull\u2028as rain \t0'],
  'MRPC/train.tsv': ['\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String', '1\t7\t8\t"A b\tA c"'],
  'QQP/train.tsv': ['id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate', '0\t1\t2\tA?\tB?\t1'],
  'STS-B/train.tsv': [STSB.replace(' ', '\t'), '0\tg\tf\t12\t4\tn\tn\tA\tB\t3.250'],
  'MNLI/train.tsv': [
    MNLI.replace(' ', '\t'),
    '0\t1\t1\tf\t(\t)\tA\tB\tneutral\tneutral',
    '1\t1\t1\tf\t(\t)\tA\tC\tneutral\tcontradiction',
    '2\t1\t1\tf\t(\t)\tA\tD\tneutral\tentailment',
  ],
  'QNLI/train.tsv': ['index\tquestion\tsentence\tlabel', '3\tA?\tB\tnot_entailment'],
  'RTE/train.tsv': [PAIR.replace(' ', '\t'), '0\tA\tB\tentailment', '1\tB\tA\tnot_entailment'],
  'WNLI/train.tsv': [PAIR.replace(' ', '\t'), '0\tA\tB\t1'],
}
WANTED = {
  'cola': [(('A "b.',), 1), (('B a.',), 0)],
  'sst2': [(('fine ',), 1), (('dull\u2028as rain ',), 0)],
  'mrpc': [(('"A b', 'A c"'), 1)],
  'qqp': [(('A?', 'B?'), 1)],
  'stsb': [(('A', 'B'), 3.25)],
  'mnli': [(('A', 'B'), 1), (('A', 'C'), 2), (('A', 'D'), 0)],
  'qnli': [(('A?', 'B'), 1)],
  'rte': [(('A', 'B'), 0), (('B', 'A'), 1)],
  'wnli': [(('A', 'B'), 1)],
}


def write(folder, name, lines, end='\n'):
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes((end.join(lines) + end).encode())
  return path


def read(folder, name, split='train', limit=None):
  task = tasks.TASKS[name]
  return tasks.read(tasks.find(folder, task, split), task, limit)


@pytest.mark.parametrize('name', tasks.TASKS)
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_the_distribution_is_read(name, end, tmp_path):
  file = f'{tasks.TASKS[name].folder}/train.tsv'
  write(tmp_path, file, LAYOUT[file], end)
  assert read(tmp_path, name) == (WANTED[name], 0)
  assert read(tmp_path, name, limit=1).examples == WANTED[name][:1]


def test_a_last_line_without_its_end_counts(tmp_path):
  write(tmp_path, 'CoLA/train.tsv', LAYOUT['CoLA/train.tsv'], end='\n')
  path = tmp_path / 'CoLA/train.tsv'
  path.write_bytes(path.read_bytes()[:-1])
  assert len(read(tmp_path, 'cola').examples) == 2


def test_the_order_of_labels_is_fixed():
  """That of the data set's own files: a checkpoint's head means the same everywhere."""
  assert tasks.TASKS['mnli'].labels == ('entailment', 'neutral', 'contradiction')
  assert tasks.TASKS['rte'].labels == tasks.TASKS['qnli'].labels
  assert tasks.TASKS['rte'].labels == ('entailment', 'not_entailment')


def test_flat_packed_and_json_files_are_read(tmp_path):
  lines = '\n'.join(LAYOUT['RTE/train.tsv'])
  (tmp_path / 'RTE.train.tsv.xz').write_bytes(lzma.compress(lines.encode()))
  assert read(tmp_path, 'rte').examples == WANTED['rte']
  rows = [dict(premise='A', hypothesis='B', label=x, idx=3) for x in (1, 'contradiction')]
  write(tmp_path, 'MNLI.dev_matched.jsonl', map(json.dumps, rows))
  found = read(tmp_path, 'mnli', 'dev_matched').examples
  assert found == [(('A', 'B'), 1), (('A', 'B'), 2)]
  rows = [dict(sentence1='A', sentence2='B', label=x) for x in (0, 5, 2.5)]
  write(tmp_path, 'STS-B/dev.jsonl', map(json.dumps, rows))
  assert [e.label for e in read(tmp_path, 'stsb', 'dev').examples] == [0.0, 5.0, 2.5]


HEAD = PAIR.replace(' ', '\t')


@pytest.mark.parametrize(
  'name, file, lines, words',
  [
    ('rte', 'RTE/train.tsv', [HEAD, '0\tA\tB\tentailment', '1\tA'], 'line 3: 2 columns, 4 are'),
    ('rte', 'RTE/train.tsv', [HEAD, '0\tA\tB\tC\tentailment'], 'line 2: 5 columns'),
    ('rte', 'RTE/train.tsv', [HEAD, '0\tA\tB\tneutral'], "line 2: the label 'neutral' is none of"),
    ('rte', 'RTE/train.tsv', ['a\tb', '0\tA'], "line 1: no column 'sentence1'.* a, b$"),
    ('rte', 'RTE/train.tsv', [HEAD], 'no examples'),
    ('rte', 'RTE/train.tsv', [''], 'is empty'),
    ('cola', 'CoLA/train.tsv', ['gj04\t2\t\tA'], "line 1: the label '2'"),
    ('cola', 'CoLA/train.tsv', ['gj04\t1\tA'], 'line 1: 3 columns'),
    ('stsb', 'STS-B/train.tsv', [LAYOUT['STS-B/train.tsv'][0], '\t' * 9 + '5.1'], "line 2.*'5.1'"),
    ('stsb', 'STS-B/train.tsv', [LAYOUT['STS-B/train.tsv'][0], '\t' * 9 + 'nan'], "line 2.*'nan'"),
    ('stsb', 'STS-B/train.tsv', [LAYOUT['STS-B/train.tsv'][0], '\t' * 9 + 'x'], "line 2.*'x'"),
    ('sst2', 'SST-2/train.jsonl', ['{"sentence": "A", "label": -1}'], 'item 1: the label -1'),
    ('sst2', 'SST-2/train.jsonl', ['{"sentence": "A", "label": true}'], 'the label True'),
    ('sst2', 'SST-2/train.jsonl', ['{"sentence": "A", "label": [1]}'], r'the label \[1\]'),
    ('sst2', 'SST-2/train.jsonl', ['{"sentence": 1, "label": 1}'], 'item 1: sentence must be text'),
    ('sst2', 'SST-2/train.jsonl', ['{"text": "A", "label": 1}'], "line 1: the field 'sentence'"),
  ],
)
def test_bad_files_are_named(name, file, lines, words, tmp_path):
  path = write(tmp_path, file, lines)
  with pytest.raises(ValueError, match=words) as e:
    read(tmp_path, name)
  assert str(path) in str(e.value) and '\n' not in str(e.value)


def test_only_qqp_may_have_broken_rows_and_few(tmp_path):
  """Its own files have questions that run over two lines."""
  head, whole = LAYOUT['QQP/train.tsv']
  write(tmp_path, 'QQP/train.tsv', [head, '9\t1\t2\tA', '?\tB?\t1', *[whole] * 1000])
  found = read(tmp_path, 'qqp')
  assert found.skipped == 2 and found.examples == 1000 * WANTED['qqp']
  write(tmp_path, 'QQP/train.tsv', [head, *['?\tB?\t1'] * 3, *[whole] * 1000])
  with pytest.raises(ValueError, match='train.tsv: 3 rows are broken beside 1000'):
    read(tmp_path, 'qqp')


def test_a_missing_file_is_told_with_the_accepted_names(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match='dev_mismatched file of MNLI; one of MNLI/dev_mism') as e:
    tasks.find(tmp_path, tasks.TASKS['mnli'], 'dev_mismatched')
  assert 'MNLI.dev_mismatched.jsonl' in str(e.value) and '.xz' in str(e.value)
  with pytest.raises(ValueError, match='no folder .*nowhere'):
    tasks.folder(str(tmp_path / 'nowhere'))
  for v in ('LMJAX_DATA', 'LMJAX_TEST_DATA'):
    monkeypatch.delenv(v, raising=False)
  with pytest.raises(ValueError, match='LMJAX_DATA is not set'):
    tasks.folder('')
  (tmp_path / 'eval/glue').mkdir(parents=True)
  monkeypatch.setenv('LMJAX_DATA', str(tmp_path))
  assert tasks.folder('') == tmp_path / 'eval/glue'


REAL = {  # (train rows, dev rows, share of class 1 on dev)
  'sst2': (60_614, 872, 444 / 872),
  'mrpc': (3_668, 408, 279 / 408),
  'rte': (2_490, 277, 131 / 277),
  'cola': (8_551, 1_043, 721 / 1_043),
}


@pytest.mark.parametrize('name', REAL)
def test_real_files_are_read_whole(name, test_data):
  train, dev = (read(test_data / 'eval/glue', name, s).examples for s in ('train', 'dev'))
  assert (len(train), len(dev)) == REAL[name][:2]
  assert np.mean([e.label for e in dev]) == pytest.approx(REAL[name][2])
  assert all(t.strip() for e in train + dev for t in e.texts)
