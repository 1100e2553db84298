"""What a config.json may say: every field is known, or the model is refused.

A field that nobody here knows may change the function; it is refused by name unless it is null, or
the user says that it may be ignored.
"""

import dataclasses
from typing import Any, Collection, Mapping

from lmjax.interop.hf import _folder

# Of every architecture: what says nothing about the function of the weights on a text.
SILENT = frozenset(
  'architectures bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward '
  'decoder_start_token_id diversity_penalty do_sample dtype early_stopping '
  'encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task '
  'forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label initializer_range '
  'is_decoder is_llama_config label2id length_penalty max_length min_length model_type '
  'max_sequence_length model_max_length no_repeat_ngram_size num_beam_groups num_beams num_labels '
  'num_return_sequences output_attentions output_hidden_states output_past output_scores '
  'pad_token_id prefix pretraining_tp '
  'problem_type remove_invalid_values repetition_penalty return_dict return_dict_in_generate '
  'sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class '
  'top_k top_p torch_dtype torchscript transformers.js_config transformers_version typical_p '
  'unsloth_fixed unsloth_version use_bfloat16 use_cache _attn_implementation '
  '_attn_implementation_autoset _commit_hash _flash_attn_2_enabled _name_or_path '
  '_num_labels'.split()
)
# Of every architecture: the values that are accepted, the first where the field is absent.
FIXED: Mapping[str, tuple] = dict(
  add_cross_attention=(False,),
  cross_attention_hidden_size=(None,),
  is_encoder_decoder=(False,),
  pruned_heads=({},),
  rope_interleaved=(False,),
  tie_encoder_decoder=(False,),
)


@dataclasses.dataclass(frozen=True)
class Fields:
  """The fields of one architecture beside those of all.

  sizes: whole numbers from 1 that must be there. defaults: fields with what they mean where absent;
    a value has the type of its default, a size where that is None. fixed: the only values that are
    accepted, the first of them where absent. silent: no influence on the function (dropout among
    them: imported models have none). kept: fields that the architecture looks at itself, given as
    they are where they are there. nullable: defaults that null turns off.
  """

  sizes: tuple[str, ...]
  defaults: Mapping[str, Any]
  fixed: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
  silent: tuple[str, ...] = ()
  kept: tuple[str, ...] = ()
  nullable: tuple[str, ...] = ()


def checked(
  given: Mapping[str, Any], fields: Fields, where: str, ignore: Collection[str] = ()
) -> dict[str, Any]:
  """The fields that say what the function is, with defaults; those of `kept` as they are. Raises
  ValueError, which begins with `where`, naming a field, its value and what is accepted.
  """
  if 'auto_map' in given:
    raise ValueError(
      f'{where}: auto_map={given["auto_map"]!r}: the model brings code of its own, which is never '
      'run'
    )
  fixed = {**FIXED, **fields.fixed}
  known = {*fields.sizes, *fields.defaults, *fixed, *fields.silent, *fields.kept, *SILENT, *ignore}
  unknown = [k for k, v in given.items() if k not in known and v is not None]
  if unknown:
    raise ValueError(
      f'{where}: {_folder.some(unknown)}: not known to {given.get("model_type")}, and may change '
      'what the model computes; --ignore=NAME,... leaves fields out of account'
    )
  for key, accepted in fixed.items():
    value = given.get(key, accepted[0])
    if value not in accepted:
      raise ValueError(
        f'{where}: {key}={value!r}: this is not supported, only {" or ".join(map(repr, accepted))}'
      )
  out = {k: given[k] for k in fields.kept if given.get(k) is not None}
  for key in fields.sizes:
    if key not in given:
      raise ValueError(f'{where}: {key} is missing')
    out[key] = _typed(where, key, given[key], None)
  for key, default in fields.defaults.items():
    value = given.get(key, default)
    off = value is None and (default is None or key in fields.nullable)
    out[key] = value if off else _typed(where, key, value, default)
  return out


def _typed(where: str, key: str, value: Any, like: Any) -> Any:
  kind = int if like is None else type(like)
  if kind is float and type(value) is int and abs(value) < 2**63:
    value = float(value)
  least = 1 if like is None else 0
  if type(value) is not kind or (kind is int and value < least):
    expected = (
      f'a whole number from {least}' if kind is int else f'{kind.__name__}, as in {like!r},'
    )
    raise ValueError(f'{where}: {key}={value!r}: {expected} is expected')
  return value
