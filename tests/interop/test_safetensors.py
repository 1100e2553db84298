"""Safetensors: every way in which a header can lie is refused by name, before it is believed."""

import json
import os

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import safetensors as library
from safetensors import numpy as library_numpy

from lmjax.interop import safetensors

ARRAYS = {
  'a/b': np.arange(6, dtype=np.float32).reshape(2, 3),
  'bf16': np.arange(5).astype(ml_dtypes.bfloat16),
  'empty': np.zeros((0, 3), np.int8),
  'scalar': np.array(2**40, np.int64),
  'ü': np.array([True, False]),
}
METADATA = {'step': '3', 'note': 'größe'}


def _same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape)
    assert a[name].tobytes() == b[name].tobytes()


@pytest.fixture
def file(tmp_path):
  safetensors.write(tmp_path / 'w.safetensors', ARRAYS, METADATA)
  return tmp_path / 'w.safetensors'


def _write(path, header, data=b'', length=None):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes((len(text) if length is None else length).to_bytes(8, 'little') + text + data)
  return path


def _entry(dtype='F32', shape=(2,), begin=0, end=8, **more):
  return {'dtype': dtype, 'shape': list(shape), 'data_offsets': [begin, end]} | more


# ------------------------------------------------------------------ what is sound


def test_round_trip_is_bit_exact(file):
  _same(safetensors.read(file), ARRAYS)
  assert safetensors.header(file).metadata == METADATA
  assert os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize('name', safetensors.DTYPES)
def test_every_dtype_round_trips_and_the_library_agrees(tmp_path, name):
  dtype = safetensors.DTYPES[name]
  arrays = {'x': np.arange(6).reshape(2, 3).astype(dtype), 'none': np.zeros((2, 0), dtype)}
  safetensors.write(tmp_path / 'f', arrays)
  _same(safetensors.read(tmp_path / 'f'), arrays)
  with library.safe_open(tmp_path / 'f', framework='np') as f:
    assert f.get_slice('x').get_dtype() == name and f.get_slice('x').get_shape() == [2, 3]


def test_files_of_the_library_are_read(tmp_path):
  arrays = {k: v for k, v in ARRAYS.items() if v.dtype != ml_dtypes.bfloat16}
  library_numpy.save_file(arrays, tmp_path / 'f')
  _same(safetensors.read(tmp_path / 'f'), arrays)
  safetensors.write(tmp_path / 'g', arrays)
  _same(library_numpy.load_file(tmp_path / 'g'), arrays)


def test_arrays_are_stored_as_they_are_seen_not_as_they_lie(tmp_path):
  base = np.arange(12, dtype=np.float32).reshape(3, 4)
  arrays = {'t': base.T, 'step': base[:, ::2], 'big': base.astype('>f4'), 'dot': base[1, 2]}
  safetensors.write(tmp_path / 'f', arrays)
  found = safetensors.read(tmp_path / 'f')
  for name, array in arrays.items():
    np.testing.assert_array_equal(found[name], array)
    assert found[name].shape == np.shape(array) and found[name].dtype == np.float32


def test_arrays_are_views_of_the_file(tmp_path):
  """An array much larger than what is touched costs nothing: the file is sparse."""
  size = 2**34
  path = _write(tmp_path / 'f', {'x': _entry('U8', (size,), 0, size)})
  with open(path, 'r+b') as f:
    f.truncate(path.stat().st_size + size)
  found = safetensors.read(path)['x']
  assert found.nbytes == size and found[-1] == 0 and not found.flags.writeable


def test_what_does_not_lie_aligned_is_copied(tmp_path):
  header = json.dumps({'x': _entry(shape=(2,))}).encode()
  header += b' ' * ((1 - 8 - len(header)) % 4)  # the arrays begin at an odd byte
  path = _write(tmp_path / 'f', header, np.array([1.5, -2], np.float32).tobytes())
  assert (8 + len(header)) % 4 == 1
  found = safetensors.read(path)['x']
  assert found.tolist() == [1.5, -2] and found.flags.aligned and not found.flags.writeable


def test_no_arrays_at_all(tmp_path):
  assert safetensors.read(_write(tmp_path / 'f', {})) == {}


# ------------------------------------------------------------------ what is refused

TWICE = b'{"a": %s, "a": %s}' % ((json.dumps(_entry()).encode(),) * 2)
BAD = {
  'is not UTF-8': (b'{"\xff": 1}', 'header cannot be read'),
  'is no JSON': (b'{"a": ', 'header cannot be read'),
  'is a list': (b'[]', 'not a JSON object'),
  'begins with a space': (b' {}', 'not a JSON object'),
  'is nothing': (b'', 'not a JSON object'),
  'names an array twice': (TWICE, "'a' is there twice"),
  'names a field twice': (
    b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
    "'dtype' is there twice",
  ),
  'holds NaN': (b'{"__metadata__": {"a": NaN}}', 'NaN is no JSON'),
  'holds half a surrogate': (b'{"\\ud800": 1}', 'header cannot be read'),
  'is nested deeply': (b'{"a": ' + b'[' * 10**5, 'header cannot be read'),
  'has metadata of numbers': ({'__metadata__': {'a': 1}}, '__metadata__ is'),
  'has a list as metadata': ({'__metadata__': []}, '__metadata__ is'),
  'has a number as array': ({'a': 1}, "'a' is 1; an object of"),
  'lacks a shape': ({'a': {'dtype': 'F32', 'data_offsets': [0, 8]}}, "'a' is .* an object of"),
  'has another field': ({'a': _entry(scale=2)}, "'a' is .* an object of"),
  'has an unknown dtype': ({'a': _entry('F31')}, "'a' has dtype 'F31'; accepted are BOOL"),
  'has a number as dtype': ({'a': _entry(4)}, "'a' has dtype 4"),
  'has a negative shape': ({'a': _entry(shape=(-2,))}, r"'a' has shape \[-2\]"),
  'has a real shape': ({'a': _entry(shape=(2.0,))}, r"'a' has shape \[2.0\]"),
  'has a boolean shape': ({'a': _entry(shape=(True, 2))}, r"'a' has shape \[True"),
  'has a number as shape': ({'a': _entry() | {'shape': 2}}, "'a' has shape 2"),
  'has many axes': ({'a': _entry(shape=(1,) * 65 + (2,))}, "'a' has shape .* at most 64"),
  'has too large a shape': ({'a': _entry(shape=(2**32, 2**32))}, "'a' has shape .*too large"),
  'hides a large shape': ({'a': _entry(shape=(0, 2**62, 2**62), end=0)}, "'a' .*too large"),
  'wraps around at 64 bits': ({'a': _entry(shape=(2**62 + 1, 2))}, "'a' has shape .*too large"),
  'has too few bytes': ({'a': _entry(shape=(3,))}, "'a' has 8 bytes; F32 .* needs 12"),
  'has too many bytes': ({'a': _entry(shape=(1,))}, "'a' has 8 bytes; F32 .* needs 4"),
  'leaves the file': ({'a': _entry(shape=(4,), end=16)}, r"'a' has data_offsets \[0, 16\]"),
  'begins before the arrays': ({'a': _entry(begin=-4, end=4)}, r"'a' has data_offsets \[-4"),
  'ends before it begins': ({'a': _entry(begin=8, end=0)}, r"'a' has data_offsets \[8, 0\]"),
  'has one offset': ({'a': _entry() | {'data_offsets': [0]}}, r"'a' has data_offsets \[0\]"),
  'has real offsets': ({'a': _entry(end=8.0)}, "'a' has data_offsets"),
  'overlaps': (
    {'a': _entry(), 'b': _entry(shape=(1,), begin=4, end=8)},
    "'b' begins at byte 4, not at 8: it overlaps",
  ),
  'lies twice in one place': ({'a': _entry(), 'b': _entry()}, "'b' begins .* overlaps"),
  'has a hole': ({'a': _entry(shape=(1,), begin=4, end=8)}, "'a' begins at byte 4.* leaves a hole"),
  'leaves bytes over': ({'a': _entry(shape=(1,), end=4)}, 'end at byte 4, but 8 bytes follow'),
  'is no boolean': ({'a': _entry('BOOL', (8,))}, "'a' is BOOL and holds bytes"),
}


@pytest.mark.parametrize('case', BAD)
def test_a_header_that_is_not_sound_is_refused(tmp_path, case):
  header, message = BAD[case]
  path = _write(tmp_path / 'f', header, bytes(range(8)))
  with pytest.raises(ValueError, match=f'^{path}.*{message}'):
    safetensors.read(path)


def test_sizes_that_do_not_fit_the_file_are_refused(tmp_path, monkeypatch):
  path = tmp_path / 'f'
  for content in (b'', b'1234567'):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f'{path} has {len(content)} bytes; .* at least 8'):
      safetensors.read(path)
  for length in (3, 2**31, 2**64 - 1):
    with pytest.raises(ValueError, match=f'{path}: its header is said to have {length} bytes'):
      safetensors.read(_write(path, {}, length=length))
  monkeypatch.setattr(safetensors, 'MAX_HEADER', 9)
  with pytest.raises(ValueError, match='said to have 10 bytes; .* 9 are accepted'):
    safetensors.read(_write(path, b'{        }'))


def test_a_header_beyond_the_bound_is_not_read(tmp_path):
  """The file is sparse: reading 2**36 bytes would not end well."""
  path = _write(tmp_path / 'f', b'', length=2**36)
  with open(path, 'r+b') as f:
    f.truncate(2**36 + 8)
  with pytest.raises(ValueError, match='said to have 68719476736 bytes'):
    safetensors.read(path)


def test_what_is_no_file_is_refused(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  for path in (tmp_path, tmp_path / 'pipe'):
    with pytest.raises(ValueError, match=f'{path} is not a file'):
      safetensors.read(path)
  with pytest.raises(ValueError, match='cannot read .*none: No such file'):
    safetensors.read(tmp_path / 'none')


def test_nothing_is_mapped_before_the_header_is_checked(tmp_path, monkeypatch):
  def mapped(*_, **__):
    raise AssertionError('mapped')

  monkeypatch.setattr(np, 'memmap', mapped)
  monkeypatch.setattr(library, 'safe_open', mapped)
  for name, (header, _) in BAD.items():
    if name != 'is no boolean':
      with pytest.raises(ValueError):
        safetensors.read(_write(tmp_path / 'f', header, bytes(8)))


def test_what_only_the_library_refuses_is_refused(file, monkeypatch):
  def refuse(*_, **__):
    raise library.SafetensorError('no')

  monkeypatch.setattr(library, 'safe_open', refuse)
  with pytest.raises(ValueError, match=f'{file} is not a sound safetensors file: no'):
    safetensors.read(file)


@hypothesis.settings(max_examples=400, deadline=None)
@hypothesis.given(data=st.data())
def test_any_change_of_the_header_is_read_or_refused(tmp_path_factory, data):
  """Bytes of the header changed, the file cut: a ValueError, or arrays of the same bytes."""
  path = tmp_path_factory.mktemp('f') / 'w'
  safetensors.write(path, ARRAYS, METADATA)
  content = bytearray(path.read_bytes())
  end = safetensors.header(path).start
  for _ in range(data.draw(st.integers(0, 3))):
    at = data.draw(st.integers(0, end - 1))
    content[at] = data.draw(st.integers(0, 255) | st.sampled_from(b'0123456789[]{}",:IUF'))
  cut = data.draw(st.none() | st.integers(0, len(content)))
  path.write_bytes(content[:cut])
  try:
    found = safetensors.read(path)
  except ValueError as e:
    assert str(path) in str(e)
    return
  assert cut is None or cut == len(content)
  entries = safetensors.header(path).entries
  joined = b''.join(found[n].tobytes() for n in sorted(found, key=lambda n: entries[n].begin))
  assert joined == content[end:]


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(
  st.dictionaries(
    st.text(max_size=3),
    st.fixed_dictionaries(
      {
        'dtype': st.sampled_from(['F32', 'BOOL', 'BF16', 'I64', 'X', 1]),
        'shape': st.lists(st.integers(-1, 4) | st.integers(), max_size=3),
        'data_offsets': st.lists(st.integers(-1, 40) | st.integers(), min_size=1, max_size=3),
      }
    ),
    max_size=3,
  )
)
def test_any_header_that_is_accepted_is_accepted_by_the_library(tmp_path_factory, header):
  path = _write(tmp_path_factory.mktemp('f') / 'w', header, bytes(24))
  try:
    found = safetensors.read(path)
  except ValueError as e:
    assert str(path) in str(e)
  else:
    with library.safe_open(path, framework='np') as f:
      assert set(f.keys()) == found.keys()


# ------------------------------------------------------------------ writing


def test_nothing_is_overwritten(file):
  before = file.read_bytes()
  with pytest.raises(ValueError, match=f'{file} exists; name a file that does not'):
    safetensors.write(file, {'x': np.ones(3)})
  other = file.with_name('x')
  file.with_name('x.partial').write_text('mine')
  with pytest.raises(ValueError, match='x.partial exists'):
    safetensors.write(other, {'x': np.ones(3)})
  assert file.read_bytes() == before and file.with_name('x.partial').read_text() == 'mine'
  with pytest.raises(ValueError, match='there is no folder'):
    safetensors.write(file.parent / 'none' / 'x', {})


@pytest.mark.parametrize(
  'arrays, metadata, message',
  [
    ({'w': np.ones(2, np.complex128)}, {}, "'w' has dtype complex128; safetensors hold bfloat16"),
    ({'w': np.array([None])}, {}, "'w' has dtype object"),
    ({'__metadata__': np.ones(2)}, {}, 'cannot be the name'),
    ({1: np.ones(2)}, {}, '1 is not a text'),
    ({}, {'step': 3}, '3 is not a text'),
    ({'\ud800': np.ones(2)}, {}, 'cannot write'),
  ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, arrays, metadata, message):
  with pytest.raises(ValueError, match=message):
    safetensors.write(tmp_path / 'f', arrays, metadata)
  assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
  def full(_, path, *__):
    path.write_text('half')
    raise library.SafetensorError('No space left on device')

  monkeypatch.setattr(library_numpy, 'save_file', full)
  with pytest.raises(ValueError, match=f'cannot write {tmp_path}/f: No space left'):
    safetensors.write(tmp_path / 'f', ARRAYS)
  assert os.listdir(tmp_path) == []
