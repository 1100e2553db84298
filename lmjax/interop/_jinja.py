"""Chat templates as the libraries of Hugging Face compile them: in the immutable sandbox of Jinja,
blocks take their line, with `tojson`, `raise_exception`, `strftime_now` (the date of the day, where
a template asks for it), `{% generation %}` and loop controls.
"""

import datetime
import importlib.metadata
import json

OLDEST = (3, 1, 6)  # sandboxes before it can be left


def compiled(where: str, template: str):
  """A template to `render`; where: it stands, in words. Raises ValueError where it is none, or
  where Jinja is missing or old.
  """
  try:
    import jinja2
    import jinja2.ext
    import jinja2.sandbox
  except ModuleNotFoundError:
    raise ValueError(
      "a chat template needs the module jinja2: pip install 'lmjax[lm_eval]'"
    ) from None
  version = importlib.metadata.version('jinja2')
  if tuple(int(n) for n in version.split('.')[:3] if n.isdigit()) < OLDEST:
    wanted = '.'.join(map(str, OLDEST))
    raise ValueError(f'jinja2 {version} has a sandbox with known holes; {wanted} is expected')

  class Generation(jinja2.ext.Extension):
    """`{% generation %}`, which marks what a model wrote: its content."""

    tags = {'generation'}

    def parse(self, parser):
      line = next(parser.stream).lineno
      body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
      return jinja2.nodes.Scope(body).set_lineno(line)

  class Namespace(jinja2.utils.Namespace):
    """Without names that are Python's own."""

    def __init__(*args, **values):
      self, *given = args
      jinja2.utils.Namespace.__init__(self)
      for name, value in dict(*given, **values).items():
        self[name] = value

    def __setitem__(self, name, value):
      if str(name).startswith('_'):
        raise jinja2.exceptions.SecurityError(f'the name {name!r} begins with _')
      super().__setitem__(name, value)

  def refuse(message):
    raise jinja2.exceptions.TemplateError(message)

  def as_json(x, ensure_ascii=False, **how):
    return json.dumps(x, ensure_ascii=ensure_ascii, **how)

  made = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
  )
  made.filters['tojson'] = as_json
  made.globals |= dict(
    namespace=Namespace,
    dict=lambda *args, **values: dict(*args, **values),
    raise_exception=refuse,
    strftime_now=lambda form: datetime.datetime.now().strftime(form),
  )
  try:
    return made.from_string(template)
  except Exception as e:  # nesting without end, and constants that the compiler works out
    raise ValueError(f'{where} cannot be read: {e}') from None
