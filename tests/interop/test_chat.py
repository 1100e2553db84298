"""Chat templates: rendered and encoded as `transformers` does, kept by an import, and refused where
there is none; what a template may not do.
"""

import json

import pytest

import _hf_folders as _tiny
import _tokenizers
from lmjax import registry
from lmjax import restore
from lmjax.interop import __main__ as command
from lmjax.interop import chat
from lmjax.interop import harness
from lmjax.interop.hf import _tokenizer
from lmjax.tokenizers import _bpe_files
from lmjax.tokenizers import sentencepiece

pytest.importorskip('jinja2', reason='jinja2 comes with lm_eval, in the extra test-heavy')

SPECIALS = ('<s>', '</s>', '<|im_start|>', '<|im_end|>')
CHATML = """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\n' }}
{%- endif %}
"""
# Turns that have to take turns, contents without white space around, a mark of what was written.
TURNS = """{{- bos_token }}
{%- set ns = namespace(turn=0) %}
{%- for message in messages %}
  {%- if (message.role == 'user') != (ns.turn % 2 == 0) %}
    {{- raise_exception('turns are expected of user and assistant') }}
  {%- endif %}
  {%- set ns.turn = ns.turn + 1 %}
  {%- if message.role == 'user' %}
    {{- '[INST] ' + message.content | trim + ' [/INST]' }}
  {%- else %}
    {%- generation %}{{ ' ' + message.content | trim + eos_token }}{% endgeneration %}
  {%- endif %}
  {%- if ns.turn > 4 %}{% break %}{% endif %}
{%- endfor %}
"""
TOOLS = """{# content #}
{{ messages | tojson(indent=1) }}{{ dict(a='é<')|tojson }}
{{ strftime_now('%Y') }}
  {% if tools is none and not documents %}none{% endif %}
{{ pad_token is defined }}{{ unk_token }}"""
ASK = [dict(role='user', content=' Café? \n'), dict(role='assistant', content=' No <s> . ')]
MORE = [*ASK, dict(role='user', content='Why?')]


def folder(path, settings, **files):
  """A folder of a Llama with a byte-level tokenizer.json of four specials."""
  added = {s: (256 + i, True) for i, s in enumerate(SPECIALS)}
  ids = dict(bos_token_id=256, eos_token_id=257)
  _tiny.folder(path, **ids)
  text = _tokenizer.file({c: b for b, c in enumerate(_bpe_files.alphabet())}, [], added)
  (path / 'tokenizer.json').write_text(json.dumps(text))
  named = dict(
    bos_token='<s>', eos_token=dict(__type='AddedToken', content='<|im_end|>'), unk_token='</s>'
  )
  more = dict(added_tokens_decoder={'258': dict(content='<|im_start|>', special=True)})
  named = dict(tokenizer_class='PreTrainedTokenizerFast', add_bos_token=False, **named, **more)
  (path / 'tokenizer_config.json').write_text(json.dumps(named | settings))
  for name, template in files.items():
    (path / f'{name}.jinja').write_text(template)
  return path


def run_of(path):
  """The run directory of a folder."""
  assert command.main(['import', str(path), f'--out={path}-run']) == 0
  return path.with_name(f'{path.name}-run')


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
  """A run whose folder is gone."""
  path = folder(tmp_path_factory.mktemp('chat') / 'in', dict(chat_template=CHATML))
  run_dir = run_of(path)
  path.rename(path.with_name('moved'))
  return run_dir


def test_an_import_keeps_the_template_and_its_end_token(imported):
  run, params, vars, _ = restore.load(imported)
  found = chat.of(run)
  text = found.render([dict(role='user', content='Hi')])
  assert text == '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
  hi = [258, *b'user\nHi', 259, *b'\n', 258, *b'assistant\n']
  assert found.tokenizer.encode(text).tolist() == hi
  assert run.tokenizer.encode(text).tolist() == list(text.encode())  # as ever
  model = harness.language_model(run, params, vars, chat=found)
  assert (run.tokenizer.eos, model.tokenizer.eos, model.prefix) == (257, 259, 257)
  assert model.tokenizer.decode(hi) == 'user\nHi\nassistant\n'


def test_specials_in_front_of_the_vocabulary_keep_their_ids(tmp_path):
  """As SmolLM has them; the library numbers added tokens anew that the vocabulary does not have."""
  path = folder(tmp_path / 'in', dict(chat_template=CHATML))
  text = json.loads((path / 'tokenizer.json').read_text())
  text['model']['vocab'] = {k: i + 4 for k, i in text['model']['vocab'].items()}
  for i, entry in enumerate(text['added_tokens']):
    entry['id'] = i
  (path / 'tokenizer.json').write_text(json.dumps(text))
  found = chat.Chat(path, registry.make('tokenizer', f'bpe(path="{path}/tokenizer.json")')())
  assert found.tokenizer.encode('<|im_start|>a<|im_end|>').tolist() == [2, ord('a') + 4, 3]
  assert found.tokenizer.eos == 3


def test_requests_as_chats(imported):
  run, params, vars, _ = restore.load(imported)
  found = chat.of(run)
  asked = harness.Requests(harness.language_model(run, params, vars, chat=found), found)
  assert asked.apply_chat_template(ASK, add_generation_prompt=False).endswith(
    'assistant\n No <s> . '
  )
  assert asked.chat_template(True) == CHATML and asked.chat_template() == ''
  other = chat.Chat(imported, run.tokenizer)
  other.template += ' '
  assert asked.tokenizer_name == f'lmjax-{found.fingerprint}' != f'lmjax-{other.fingerprint}'
  plain = harness.Requests(harness.language_model(run, params, vars))
  with pytest.raises(ValueError, match='--apply_chat_template asks for one'):
    plain.apply_chat_template(ASK)
  assert plain.chat_template() == ''


@pytest.mark.parametrize(
  'flags, words',
  [
    ([], 'there is no chat template in it'),
    (['--tokenizer=bytes()'], 'is of no folder that could'),
  ],
)
def test_a_run_without_a_template_is_refused(tmp_path, flags, words):
  path = folder(tmp_path / 'in', {})
  assert command.main(['import', str(path), f'--out={tmp_path}/run', *flags]) == 0
  run = restore.load(tmp_path / 'run')[0]
  assert not (tmp_path / 'run' / 'tokenizer_config.json').exists()
  with pytest.raises(ValueError, match='--apply_chat_template: .*') as e:
    chat.of(run)
  assert words in str(e.value)


def test_one_of_several_is_asked_for_by_name(tmp_path):
  several = [dict(name='rag', template='R'), dict(name='tool', template='T')]
  path = run_of(folder(tmp_path / 'in', dict(chat_template=several)))
  own = restore.load(path)[0].tokenizer
  assert chat.Chat(path, own, 'tool').render(ASK) == 'T'
  with pytest.raises(ValueError, match="no chat template 'default' among them; it has rag, tool"):
    chat.Chat(path, own)
  (path / 'chat_template.jinja').write_text('F')  # files go before settings
  assert chat.templates(path) == dict(default='F')
  (path / 'additional_chat_templates').mkdir()
  (path / 'additional_chat_templates' / 'tool.jinja').write_text('G')
  chat.keep(path, tmp_path)
  assert chat.templates(tmp_path) == dict(default='F', tool='G')


@pytest.mark.parametrize('several', [False, True])
def test_an_export_hands_the_templates_on(tmp_path, several):
  given = [dict(name='default', template=TURNS), dict(name='tools', template=TOOLS)]
  run = run_of(folder(tmp_path / 'in', dict(chat_template=given if several else TURNS)))
  assert command.main(['export', str(run), f'--out={tmp_path / "out"}']) == 0
  again = run_of(tmp_path / 'out')
  loaded = restore.load(run)[0], restore.load(again)[0]
  for name in ('default', 'tools') if several else ('default',):
    before, after = (chat.of(r, name) for r in loaded)
    texts = [c.render(ASK, True) for c in (before, after)]
    assert texts[0] == texts[1] and ('<|im_end|>' in texts[0] or name == 'tools')
    ids = [list(c.tokenizer.encode(t)) for c, t in zip((before, after), texts)]
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
  'template, words',
  [
    ('{% for m in %}', 'cannot be read'),
    ('{% if 1 %}' * 3000, 'cannot be read: maximum recursion depth'),
    ('{{ 10 ** 5000 }}', 'the chat template default cannot be read: Exceeds'),
    (TURNS, 'turns are expected of user and assistant'),
    ('{{ messages[0].content + 1 }}', 'can only concatenate str'),
    ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__'"),
    ('{% set n = namespace(a=1) %}{% set n.__init__ = 2 %}', "'__init__' begins with _"),
    ('{{ namespace(__x=1) }}', "'__x' begins with _"),
    ('{{ messages.append(1) }}', 'is not safely callable|access to attribute'),
    ('{{ dict.fromkeys }}{{ dict.fromkeys(1) }}', "has no attribute 'fromkeys'"),
  ],
)
def test_what_a_template_cannot_do_is_told(tmp_path, template, words):
  path = folder(tmp_path / 'in', dict(chat_template=template))
  own = _tokenizer.find(path, json.loads((path / 'config.json').read_text())).made()
  with pytest.raises(ValueError, match=words):
    chat.Chat(path, own).render([dict(role='assistant', content='a')])


def test_a_template_that_loses_the_open_message_is_told(tmp_path):
  path = folder(tmp_path / 'in', dict(chat_template='a'))
  own = _tokenizer.find(path, json.loads((path / 'config.json').read_text())).made()
  with pytest.raises(ValueError, match='changes the last message'):
    chat.Chat(path, own).render(ASK, add_generation_prompt=False)


@pytest.mark.parametrize('begin', [True, False])
@pytest.mark.parametrize('messages', [ASK, MORE, MORE[:1]], ids=len)
@pytest.mark.parametrize('template', [CHATML, TURNS, TOOLS], ids=['chatml', 'turns', 'tools'])
def test_texts_and_tokens_are_those_of_transformers(tmp_path, template, messages, begin):
  library = pytest.importorskip('transformers', reason='transformers is in the extra test-heavy')
  path = folder(tmp_path / 'in', {}, chat_template=template)
  theirs = library.AutoTokenizer.from_pretrained(path)
  found = chat.of(restore.load(run_of(path))[0])
  how = dict(add_generation_prompt=begin, continue_final_message=not begin)
  want = theirs.apply_chat_template(messages, tokenize=False, **how)
  assert found.render(messages, begin) == want
  ids = theirs.apply_chat_template(messages, tokenize=True, return_dict=False, **how)
  assert found.tokenizer.encode(want).tolist() == ids


@pytest.mark.parametrize('messages', [[], [dict(role='user')], [dict(role='user', content=[])]])
def test_a_message_without_text_cannot_be_gone_on_with(tmp_path, messages):
  path = folder(tmp_path / 'in', dict(chat_template='a'))
  own = _tokenizer.find(path, json.loads((path / 'config.json').read_text())).made()
  with pytest.raises(ValueError, match='the last message has no text to go on with'):
    chat.Chat(path, own).render(messages, add_generation_prompt=False)


def test_a_run_of_pieces_keeps_the_file_that_knows_the_specials(tmp_path):
  """As of a Llama 2 that answers chats: tokenizer.model is read, tokenizer.json lies by."""
  path = _tiny.folder(tmp_path / 'in', vocab_size=400, bos_token_id=1, eos_token_id=2)
  text = '\n'.join(['to be or not to be, that is the question'] * 9 + [_tokenizers.TEXT])
  (path / 'tokenizer.model').write_bytes(sentencepiece.SentencePiece.train([text], 400))
  flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
  added = [dict(flags, id=i, content=c) for i, c in enumerate(('<unk>', '<s>', '</s>'))]
  names = {'<unk>': 0, '<s>': 1, '</s>': 2, 'a': 3}
  model = dict(type='BPE', vocab=names, merges=[], unk_token='<unk>', byte_fallback=True)
  known = json.dumps(dict(model=model, pre_tokenizer=None, added_tokens=added))
  (path / 'tokenizer.json').write_text(known)
  settings = dict(
    bos_token='<s>', eos_token='</s>', chat_template='{{ bos_token }}aa{{ eos_token }}'
  )
  (path / 'tokenizer_config.json').write_text(json.dumps(settings))
  assert command.main(['import', str(path), f'--out={tmp_path / "run"}']) == 0
  found = chat.of(restore.built(str(tmp_path / 'run')))
  assert found.tokenizer.encode(found.render([])).tolist() == [1, 3, 3, 2]
  assert command.main(['export', str(tmp_path / 'run'), f'--out={tmp_path / "out"}']) == 0
  assert (tmp_path / 'out' / 'tokenizer.json').read_text() == known
  assert (tmp_path / 'out' / 'tokenizer.model').is_file()
  (tmp_path / 'run' / 'tokenizer.json').write_text(known.replace('single_word', 'single'))
  with pytest.raises(ValueError, match='tokenizer.json: missing field `single_word`'):
    chat.of(restore.built(str(tmp_path / 'run')))
