"""Undoes the spacing of WikiText, as Megatron-LM does before it computes word perplexity (Shoeybi
et al., 2019, arXiv:1909.08053).
"""

import re

BEFORE = (
  ("s '", "s'"),
  (' @-@ ', '-'),
  (' @,@ ', ','),
  (' @.@ ', '.'),
  *((f' {c} ', f'{c} ') for c in ':;.!?,'),
)
ENCLOSED = ((r'\(', r'\)'), (r'\[', r'\]'), (r'\{', r'\}'), ('"', '"'), ("'", "'"))
AFTER = (
  *(('= ' * n + '=', '=' * (n + 1)) for n in (3, 2, 1)),
  (' \u00b0 ', '\u00b0'),
  (' \n', '\n'),
  ('\n ', '\n'),
  (' N ', ' 1 '),
  (" 's", "'s"),
)


def detokenize(text: str) -> str:
  """The text with hyphens and separators joined (@-@), punctuation after its word, no spaces inside
  brackets, quotes and headings' signs.
  """
  for old, new in BEFORE:
    text = text.replace(old, new)
  for left, right in ENCLOSED:
    last = right[-1]
    text = re.sub(
      rf'{left}\s*([^{right}]*?)\s*{right}', lambda m, a=left[-1], b=last: a + m.group(1) + b, text
    )
  for old, new in AFTER:
    text = text.replace(old, new)
  return text
