"""Models in Hugging Face's layout: config.json, safetensors, tokenizer.json.

One file per architecture, named as its `model_type`; each holds data and two short functions:

  FIELDS             what its config.json may say, see `_fields`
  TABLE              which array of lmjax is which tensor, see `_tensors`; used in both directions
  to_settings(h)     checked fields -> `_settings.Settings`
  to_fields(view)    a run's model, see `_settings.view` -> fields of config.json

Export takes an architecture where `to_settings(to_fields(run))` is the run's model again, so that
nothing that changes the function is lost. Nothing here imports `transformers` or runs code that
comes with a model, and no pickle is opened. Layout: https://huggingface.co/docs/transformers
"""

import importlib
import pkgutil
from typing import Any

from lmjax.registry import nearest


def names() -> list[str]:
  """The architectures: the files of this folder."""
  return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith('_'))


def family(model_type: Any, where: str):
  """The file of an architecture. Raises ValueError, which begins with `where`."""
  if model_type not in names():
    raise ValueError(
      f'{where}: model_type={model_type!r} is not known{nearest(str(model_type), names(), ".")} '
      f'Known are {", ".join(names())}'
    )
  return importlib.import_module(f'{__name__}.{model_type}')
