"""What is said on a terminal."""

from lmjax import progress


def test_a_sample_cannot_steer_a_terminal():
  said = 'To be,\n\tor\x00 \x1b[2Jnot: caf\u00e9 \U0001f600\r'
  assert progress.plain(said) == 'To be,\n\tor\\x00 \\x1b[2Jnot: caf\u00e9 \U0001f600\\r'
