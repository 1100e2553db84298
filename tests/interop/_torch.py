"""The same weights here and in `transformers`: logits, and tensors that went there and back."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import kinds
from lmjax import restore
from lmjax.interop.hf import _exporting
from lmjax.interop.hf import _folder
from lmjax.interop.hf import _importing
from lmjax.nn import embedding

# Odd on purpose; several rows, and a length that is no power of two.
LLAMA = dict(
  vocab_size=263,
  hidden_size=24,
  intermediate_size=37,
  num_hidden_layers=3,
  num_attention_heads=6,
  num_key_value_heads=2,
  max_position_embeddings=40,
  bos_token_id=1,
  eos_token_id=2,
)
ROWS, STEPS = 3, 13


def config(name: str, **settings):
  """A config class of transformers; skips where torch or transformers is not installed."""
  pytest.importorskip('torch', reason='torch is in the extra test-heavy')
  library = pytest.importorskip('transformers', reason='transformers is in the extra test-heavy')
  return getattr(library, name)(**settings)


def model(settings, auto: str = 'AutoModelForCausalLM'):
  """A model of random weights of which none is as it begins: gains and biases too."""
  import torch
  import transformers

  torch.manual_seed(0)
  net = getattr(transformers, auto).from_config(settings).float().eval()
  with torch.no_grad():
    for p in net.parameters():
      p.add_(torch.randn_like(p), alpha=0.1)
  return net


def theirs(net, tokens, source=None) -> np.ndarray:
  """Logits. source: (tokens, segments) of an encoder, segment 0 being padding."""
  import torch

  with torch.no_grad():
    if source is None:
      return net(torch.tensor(tokens)).logits.numpy()
    read, mask = map(torch.tensor, source)
    out = net(input_ids=read, attention_mask=mask, decoder_input_ids=torch.tensor(tokens))
    return out.logits.numpy()


def ours(run_dir, tokens, source=None) -> np.ndarray:
  run, params, _, _ = restore.load(run_dir)
  places = lambda x: jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape)
  ctx = kinds.Ctx(places(tokens))
  if source is not None:
    read, mask = (a.astype(np.int32) for a in source)
    ctx = ctx.replace(
      segments_BT=jnp.ones(tokens.shape, jnp.int32), source=kinds.Text(read, places(read), mask)
    )
  out = run.architecture.apply({'params': params}, tokens.astype(np.int32), ctx)
  return np.asarray(embedding.logits(out))


def divergence(a, b) -> float:
  """Mean KL of next-token distributions, nats, in float64."""
  log = lambda x: x.astype(np.float64) - np.logaddexp.reduce(x.astype(np.float64), -1)[..., None]
  a, b = log(a), log(b)
  return float((np.exp(a) * (a - b)).sum(-1).mean())


def check(
  folder,
  settings,
  steps: int = STEPS,
  auto: str = 'AutoModelForCausalLM',
  first: int = 0,
  source=None,
  tokenizer: str = 'bytes()',
):
  """Imports a model of `transformers`, compares logits, exports it, and compares what is there.
  first: the lowest id in the texts. source: what an encoder reads, see `theirs`.
  """
  import transformers

  net = model(settings, auto)
  net.save_pretrained(folder / 'in')
  before = _folder.Folder(folder / 'in')
  _importing.to_run(str(folder / 'in'), str(folder / 'run'), tokenizer=tokenizer)
  tokens = np.random.default_rng(0).integers(first, settings.vocab_size, (ROWS, steps))
  want, got = theirs(net, tokens, source), ours(folder / 'run', tokens, source)
  assert want.std() > 0.3  # else a bound of 1e-5 would say little
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
  assert abs(divergence(want, got)) < 1e-9
  plain = tokenizer == 'bytes()'
  _exporting.to_folder(str(folder / 'run'), str(folder / 'out'), shard_size=30_000, tokenizer=plain)
  after = _folder.Folder(folder / 'out')
  assert len(list((folder / 'out').glob('*.safetensors'))) > 1
  assert before.shapes == after.shapes
  for name in before.shapes:
    assert before.read(name).tobytes() == after.read(name).tobytes(), name
  again, told = getattr(transformers, auto).from_pretrained(
    folder / 'out', output_loading_info=True
  )
  assert not any(told.values()) and type(again) is type(net)
  np.testing.assert_array_equal(theirs(again.eval(), tokens, source), want)
  if not plain:
    return
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder / 'out')
  ids = tokenizer('\u00e9 a').input_ids
  assert ids == list('\u00e9 a'.encode()) and tokenizer.decode(ids) == '\u00e9 a'
