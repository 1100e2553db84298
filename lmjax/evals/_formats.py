"""How the items of each multiple-choice task become (context, continuation) pairs: the zero-shot
prompts of lm-evaluation-harness.

Cloze tasks score the text of an option, letter tasks (mmlu, commonsense_qa) list the options in the
prompt and score ' A', ' B', ...; winogrande puts each option into the context and scores the rest
of the sentence, which is the same for both (partial evaluation, Trinh and Le, 2018,
arXiv:1806.02847). A space stands between context and option and is not counted in the option's
length.
"""

import dataclasses
import re
from typing import Any, Callable, Mapping, NamedTuple

LETTERS = 'ABCDEFGHIJ'


class Item(NamedTuple):
  """pairs: (context, continuation) of each option. sizes: characters of each option. gold: index of
  the right one.
  """

  pairs: list[tuple[str, str]]
  sizes: list[int]
  gold: int


@dataclasses.dataclass(frozen=True)
class Format:
  """file: the task's default file. fields: what a row must have. read: row -> Item. norm: whether
  acc_norm means anything.
  """

  file: str
  fields: tuple[str, ...]
  read: Callable[[Mapping[str, Any]], Item]
  norm: bool = True


def item(context: str, options: list[str], gold: int) -> Item:
  if not 0 <= gold < len(options):
    raise ValueError(f'the answer {gold} is none of the {len(options)} options')
  return Item([(context, f' {o}') for o in options], [len(o) for o in options], gold)


def letters(question: str, options: list[str], gold: int) -> Item:
  shown = ''.join(f'{LETTERS[i]}. {o}\n' for i, o in enumerate(options))
  return item(f'{question.strip()}\n{shown}Answer:', list(LETTERS[: len(options)]), gold)


def keyed(row) -> int:
  """The index of the option that `answerKey` names."""
  return row['choices']['label'].index(row['answerKey'].strip())


def question(row) -> Item:
  return item(f'Question: {row["question"]}\nAnswer:', row['choices']['text'], keyed(row))


def openbookqa(row) -> Item:
  return item(row['question_stem'], row['choices']['text'], keyed(row))


def commonsense_qa(row) -> Item:
  return letters(f'Question: {row["question"].strip()}', row['choices']['text'], keyed(row))


def mmlu(row) -> Item:
  subject = row['subject'].replace('_', ' ')
  head = f'The following are multiple choice questions (with answers) about {subject}.\n\n'
  return letters(head + row['question'].strip(), row['choices'], row['answer'])


def clean(text: str) -> str:
  """Removes WikiHow's marks in brackets."""
  text = text.strip().replace(' [title]', '. ')
  return re.sub(r'\[.*?\]', '', text).replace('  ', ' ')


def hellaswag(row) -> Item:
  context = f'{row["activity_label"]}: {row["ctx_a"]} {row["ctx_b"].capitalize()}'
  return item(clean(context), [clean(e) for e in row['endings']], int(row['label']))


def piqa(row) -> Item:
  return item(f'Question: {row["goal"]}\nAnswer:', [row['sol1'], row['sol2']], row['label'])


def winogrande(row) -> Item:
  before, gap, after = row['sentence'].partition('_')
  if not gap or not after.strip():
    raise ValueError(f'the sentence {row["sentence"]!r} has no _ with words behind it')
  rest = after.strip()
  pairs = [(before + row[o], f' {rest}') for o in ('option1', 'option2')]
  return Item(pairs, [len(rest)] * 2, ('1', '2').index(row['answer']))


def boolq(row) -> Item:
  return item(
    f'{row["passage"]}\nQuestion: {row["question"]}?\nAnswer:', ['no', 'yes'], int(row['answer'])
  )


def copa(row) -> Item:
  link = {'cause': 'because', 'effect': 'therefore'}[row['question']]
  options = [o[0].lower() + o[1:] for o in (row['choice1'], row['choice2'])]
  return item(f'{row["premise"].strip()[:-1]} {link}', options, row['label'])


def cb(row) -> Item:
  context = f'{row["premise"]}\nQuestion: {row["hypothesis"]}. True, False, or Neither?\nAnswer:'
  return item(context, ['True', 'False', 'Neither'], row['label'])


def sciq(row) -> Item:
  context = f'{row["support"].lstrip()}\nQuestion: {row["question"]}\nAnswer:'
  return item(
    context, [row['distractor1'], row['distractor2'], row['distractor3'], row['correct_answer']], 3
  )


def social_iqa(row) -> Item:
  return item(
    f'Q: {row["context"]} {row["question"]}\nA:',
    [row['answerA'], row['answerB'], row['answerC']],
    int(row['label']) - 1,
  )


KEYED = ('question', 'choices', 'answerKey')
FORMATS = {
  'arc_challenge': Format('arc_challenge_val.shared.jsonl', KEYED, question),
  'arc_easy': Format('arc_easy_val.shared.jsonl', KEYED, question),
  'basic_arithmetic': Format('basic_arithmetic.shared.jsonl', KEYED, question),
  'boolq': Format('boolq_val.shared.jsonl', ('passage', 'question', 'answer'), boolq, norm=False),
  'cb': Format('superglue_cb_val.jsonl', ('premise', 'hypothesis', 'label'), cb, norm=False),
  'commonsense_qa': Format('commonsense_qa_val.shared.jsonl', KEYED, commonsense_qa, norm=False),
  'copa': Format(
    'superglue_copa_val.jsonl',
    ('premise', 'choice1', 'choice2', 'question', 'label'),
    copa,
    norm=False,
  ),
  'hellaswag': Format(
    'hellaswag_val.shared.jsonl',
    ('activity_label', 'ctx_a', 'ctx_b', 'endings', 'label'),
    hellaswag,
  ),
  'mmlu': Format(
    'mmlu_test.shared.jsonl', ('question', 'subject', 'choices', 'answer'), mmlu, norm=False
  ),
  'openbookqa': Format(
    'openbookqa_val.shared.jsonl', ('question_stem', 'choices', 'answerKey'), openbookqa
  ),
  'piqa': Format('piqa_val.shared.jsonl', ('goal', 'sol1', 'sol2', 'label'), piqa),
  'sciq': Format(
    'sciq_val.shared.jsonl',
    ('support', 'question', 'distractor1', 'distractor2', 'distractor3', 'correct_answer'),
    sciq,
  ),
  'social_iqa': Format(
    'social_iqa_val.shared.jsonl',
    ('context', 'question', 'answerA', 'answerB', 'answerC', 'label'),
    social_iqa,
  ),
  'winogrande': Format(
    'winogrande_val.shared.jsonl',
    ('sentence', 'option1', 'option2', 'answer'),
    winogrande,
    norm=False,
  ),
}
