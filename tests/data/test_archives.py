"""Archives as corpora: members are the documents that they would be as files, nothing is unpacked
to disk, and what is unsafe or damaged is refused by a sentence that names archive and member.
"""

import bz2
import gzip
import io
import itertools
import json
import lzma
import os
import stat
import struct
import tarfile
import zipfile

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import pytest

from lmjax import registry
from lmjax.data import store
from lmjax.data.sources import _archives
from lmjax.data.sources import _files

TEXTS = {'b.txt': 'To be\n', 'a/c.md': 'caf\u00e9 \U0001f600\r\n', 'a/empty': '', 'd': 'x' * 70_000}
TARS = ('.tar', '.tar.gz', '.tgz', '.tar.xz', '.tar.bz2', '.tar.zst')


def pack(data: bytes, suffix: str) -> bytes:
  if suffix == '.zst':
    return pytest.importorskip('zstandard').ZstdCompressor().compress(data)
  packers = {
    '.gz': gzip.compress,
    '.tgz': gzip.compress,
    '.xz': lzma.compress,
    '.bz2': bz2.compress,
  }
  return packers.get(suffix, bytes)(data)


def info(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = ''):
  out = tarfile.TarInfo(name)
  out.size, out.type, out.linkname = size, kind, link
  return out


def tar_bytes(members, format=tarfile.PAX_FORMAT) -> bytes:
  """members: (name or TarInfo, bytes)."""
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode='w', format=format) as tar:
    for head, data in members:
      head = info(head, len(data)) if isinstance(head, str) else head
      tar.addfile(head, io.BytesIO(data))
  return out.getvalue()


def zip_bytes(members, method=zipfile.ZIP_DEFLATED) -> bytes:
  """members: (name or ZipInfo, bytes)."""
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w', method) as archive:
    for head, data in members:
      archive.writestr(head, data, method)
  return out.getvalue()


def encoded(texts):
  return [(k, v.encode()) for k, v in texts.items()]


def write(folder, name: str, members) -> str:
  """Writes an archive of the form that its name says; the path."""
  path = folder / name
  if name.endswith('.zip'):
    path.write_bytes(zip_bytes(members))
  else:
    path.write_bytes(pack(tar_bytes(members), path.suffix))
  return str(path)


def read(spec: str):
  return list(registry.make('source', spec)())


def fails(spec: str, *words: str):
  with pytest.raises(ValueError) as e:
    read(spec)
  assert '\n' not in str(e.value) and len(str(e.value)) < 700
  for word in words:
    assert str(word) in str(e.value), str(e.value)


# ---- what is read


@pytest.mark.parametrize('suffix', (*TARS, '.zip'))
def test_members_are_documents_in_order_and_nothing_is_unpacked(tmp_path, suffix, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = write(tmp_path, f'x{suffix}', encoded(TEXTS))
  assert read(f'text(path={path!r})') == list(TEXTS.values())
  assert read(f'text(path={path!r}, separator="\\n")')[:2] == ['To be', '']
  assert read(f'text(path={path!r}, encoding=None)') == [t.encode() for t in TEXTS.values()]
  assert os.listdir(tmp_path) == [f'x{suffix}']


def json_lines(*texts) -> bytes:
  return b''.join(json.dumps(dict(text=t)).encode() + b'\n' for t in texts)


@pytest.mark.parametrize('suffix', (*TARS, '.zip'))
def test_jsonl_reads_the_members_that_it_would_read_in_a_folder(tmp_path, suffix):
  members = [
    ('README.md', b'\xff not read'),
    ('p/one.jsonl', json_lines('a', 'b')),
    ('p/two.jsonl.gz', pack(json_lines('c'), '.gz')),
    ('p/three.jsonl.zst', pack(json_lines('d'), '.zst')),
    ('four.json', json_lines('e')),
    ('._one.jsonl', b'\x00 of another system'),
    ('.git/x.jsonl', b'hidden'),
    ('five.ndjson.xz', pack(b'\n' + json_lines('f'), '.xz')),
  ]
  path = write(tmp_path, f'x{suffix}', members)
  assert read(f'jsonl(path={path!r})') == list('abcdef')


@pytest.mark.parametrize('format', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_with_long_names_and_folders(tmp_path, format):
  folder, dot = info('a', kind=tarfile.DIRTYPE), info('./', kind=tarfile.DIRTYPE)
  long = '/'.join(['folder' * 3] * 8) + '/long.txt'
  data = tar_bytes([(dot, b''), (folder, b''), ('./a/x.txt', b'1'), (long, b'2')], format)
  (tmp_path / 'x.tar').write_bytes(data)
  assert read(f'text(path={str(tmp_path / "x.tar")!r})') == ['1', '2']


@pytest.mark.parametrize(
  'method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_every_zip_method_and_folders(tmp_path, method):
  path = tmp_path / 'x.zip'
  path.write_bytes(zip_bytes([('a/', b''), ('a/x.txt', b'1' * 9999), ('y', b'2')], method))
  assert read(f'text(path={str(path)!r})') == ['1' * 9999, '2']


def test_archives_and_files_together_and_folders_take_only_files(tmp_path):
  write(tmp_path, 'b.tar.gz', [('x', b'2'), ('y', b'3')])
  write(tmp_path, 'c.zip', [('x', b'4')])
  (tmp_path / 'a.txt').write_bytes(b'1')
  assert read(f'text(path={str(tmp_path / "*")!r})') == ['1', '2', '3', '4']
  assert read(f'text(path={str(tmp_path)!r})') == ['1']


@pytest.mark.parametrize('suffix', ('.tar', '.tar.zst', '.zip'))
def test_an_archive_without_a_wanted_member_is_refused(tmp_path, suffix):
  path = write(tmp_path, f'x{suffix}', [('a.txt', b'1'), ('.b.jsonl', b'')])
  fails(f'jsonl(path={path!r})', path, 'holds no files ending in .jsonl')
  path = write(tmp_path, f'y{suffix}', [])
  fails(f'text(path={path!r})', path, 'holds no files')


# ---- what is refused

NAMES = ('/etc/passwd', '../up.txt', 'a/../../b', '..', 'C:/x', 'c:x', 'a\\b', '..\\x', '//host/x')


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('source', ['text', 'jsonl'])
@pytest.mark.parametrize('suffix', ('.tar', '.tgz', '.zip'))
def test_names_that_leave_the_folder(tmp_path, name, source, suffix):
  good = ('a.jsonl', json_lines('fine'))
  path = write(tmp_path, f'x{suffix}', [good, (name, b'bad')])
  fails(f'{source}(path={path!r})', path, f'member {name!r}', 'is not read')


def test_a_name_with_nul_in_a_zip(tmp_path):
  data = zip_bytes([('a.txtNevil', b'1')])
  (tmp_path / 'x.zip').write_bytes(data.replace(b'a.txtNevil', b'a.txt\0evil'))
  fails(f'text(path={str(tmp_path / "x.zip")!r})', 'x.zip', "'a.txt\\x00evil'", 'NUL')


@pytest.mark.parametrize(
  'kind, words',
  [
    (tarfile.SYMTYPE, 'is a symbolic link'),
    (tarfile.LNKTYPE, 'is a hard link'),
    (tarfile.CHRTYPE, 'is a device or pipe'),
    (tarfile.BLKTYPE, 'is a device or pipe'),
    (tarfile.FIFOTYPE, 'is a device or pipe'),
    (tarfile.GNUTYPE_SPARSE, 'is a sparse file'),
    (b'Z', 'is of an unknown kind'),
  ],
)
@pytest.mark.parametrize('source', ['text', 'jsonl'])
def test_members_of_a_tar_that_are_no_files(tmp_path, kind, words, source):
  members = [('a.jsonl', json_lines('fine')), (info('odd.jsonl', kind=kind, link='a.jsonl'), b'')]
  path = tmp_path / 'x.tar'
  path.write_bytes(tar_bytes(members, tarfile.GNU_FORMAT))
  fails(f'{source}(path={str(path)!r})', path, "member 'odd.jsonl'", words)


@pytest.mark.parametrize(
  'mode, words',
  [
    (stat.S_IFLNK, 'is a symbolic link'),
    (stat.S_IFIFO, 'is a device or pipe'),
    (stat.S_IFCHR, 'is a device or pipe'),
    (stat.S_IFSOCK, 'is a device or pipe'),
  ],
)
def test_members_of_a_zip_that_are_no_files(tmp_path, mode, words):
  head = zipfile.ZipInfo('odd.txt')
  head.create_system, head.external_attr = 3, (mode | 0o644) << 16
  path = write(tmp_path, 'x.zip', [('a.txt', b'fine'), (head, b'a.txt')])
  fails(f'text(path={path!r})', path, "member 'odd.txt'", words)


def central(data: bytes) -> int:
  """Where the first entry of a zip's directory begins."""
  return data.index(b'PK\x01\x02')


def patched(data: bytes, changes) -> bytes:
  out = bytearray(data)
  for at, value in changes:
    out[at : at + len(value)] = value
  return bytes(out)


def test_encrypted_and_unknown_packing_in_a_zip(tmp_path):
  data, path = zip_bytes([('a.txt', b'1' * 99)]), tmp_path / 'x.zip'
  at = central(data)
  path.write_bytes(patched(data, [(6, b'\x01\0'), (at + 8, b'\x01\0')]))
  fails(f'text(path={str(path)!r})', path, "member 'a.txt' is encrypted")
  path.write_bytes(patched(data, [(8, b'\x5d\0'), (at + 10, b'\x5d\0')]))
  fails(f'text(path={str(path)!r})', path, "member 'a.txt' is packed by method 93")
  path.write_bytes(patched(data, [(at + 8, b'\x20\0')]))  # a patch of another file
  fails(f'text(path={str(path)!r})', path, "member 'a.txt' is damaged: compressed patched data")
  path.write_bytes(patched(data, [(at + 6, b'\xff\0')]))  # needs a later version
  fails(f'text(path={str(path)!r})', path, 'is damaged: zip file version')


@pytest.mark.parametrize('suffix', ('.tar', '.zip'))
def test_archives_within_archives(tmp_path, suffix):
  path = write(tmp_path, f'x{suffix}', [('in.tar.gz', b'1'), ('a.jsonl', json_lines('a'))])
  fails(f'text(path={path!r})', path, "member 'in.tar.gz'", 'an archive within an archive')
  assert read(f'jsonl(path={path!r})') == ['a']
  path = write(tmp_path, f'y{suffix}', [('in.jsonl.zip', b'1')])
  fails(f'jsonl(path={path!r})', path, "member 'in.jsonl.zip'", 'an archive within an archive')


@pytest.mark.parametrize('suffix', ('.tar', '.zip'))
def test_too_many_members(tmp_path, suffix, monkeypatch):
  monkeypatch.setattr(_archives, 'MEMBERS', 3)
  path = write(tmp_path, f'x{suffix}', [(f'{i}.txt', b'1') for i in range(3)])
  assert len(read(f'text(path={path!r})')) == 3
  path = write(tmp_path, f'y{suffix}', [(f'{i}.md', b'1') for i in range(4)])
  fails(f'text(path={path!r})', path, 'has more than 3 members')
  fails(f'jsonl(path={path!r})', path, 'has more than 3 members')


# ---- what unpacks to too much

ZEROS = bytes(1 << 20)


@pytest.fixture
def small(monkeypatch):
  """The bound that harms nobody, lowered so that tests need not unpack 64 MiB."""
  monkeypatch.setattr(_archives, 'SMALL', 1 << 18)


@pytest.mark.parametrize('suffix', ('.tar.gz', '.tar.xz', '.tar.bz2', '.tar.zst', '.zip'))
@pytest.mark.parametrize('name', ['zeros.txt', 'zeros.jsonl', 'zeros.md'])
def test_a_member_that_unpacks_to_too_much(tmp_path, small, suffix, name):
  path = write(tmp_path, f'x{suffix}', [('a.jsonl', json_lines('a')), (name, ZEROS)])
  fails(f'text(path={path!r})', path, f'member {name!r}', 'over 200 times')
  fails(f'jsonl(path={path!r})', path, f'member {name!r}', 'over 200 times')


def test_a_member_of_a_zip_is_measured_by_its_own_bytes(tmp_path, small):
  noise = os.urandom(1 << 20)
  path = write(tmp_path, 'x.zip', [('noise', noise), ('zeros', ZEROS)])
  fails(f'text(path={path!r}, encoding=None)', path, "member 'zeros'", 'over 200 times')


def test_a_tar_that_declares_too_much_is_refused_before_it_is_read(tmp_path):
  path = tmp_path / 'x.tar'
  path.write_bytes(info('a.txt', 1 << 40).tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
  fails(f'text(path={str(path)!r})', path, "member 'a.txt'", 'over 200 times')


@pytest.mark.parametrize('suffix', ('.tar.gz', '.zip'))
def test_members_that_together_unpack_to_too_much(tmp_path, small, suffix):
  members = [(f'{i}.txt', bytes(100_000)) for i in range(200)]
  path = write(tmp_path, f'x{suffix}', members)
  fails(f'text(path={path!r})', path, 'member ', 'over 200 times')


@pytest.mark.parametrize('inner', ('.gz', '.xz', '.bz2', '.zst'))
@pytest.mark.parametrize('suffix', ('.tar', '.zip'))
def test_a_compressed_member_that_unpacks_to_too_much(tmp_path, small, suffix, inner):
  path = write(tmp_path, f'x{suffix}', [(f'a.txt{inner}', pack(ZEROS, inner))])
  fails(f'text(path={path!r})', path, f"member 'a.txt{inner}'", 'over 200 times')


def test_compressed_members_that_together_unpack_to_too_much(tmp_path, small):
  members = [(f'{i}.txt.gz', pack(bytes(200_000), '.gz')) for i in range(200)]
  path = write(tmp_path, 'x.tar.gz', members)
  fails(f'text(path={path!r})', path, 'member ', 'over 200 times')


def test_the_bound_as_it_stands(tmp_path):
  fine = write(tmp_path, 'x.zip', [('a.txt', bytes(_archives.SMALL))])
  assert read(f'text(path={fine!r}, encoding=None)') == [bytes(_archives.SMALL)]
  bomb = write(tmp_path, 'y.zip', [('a.txt', bytes(_archives.SMALL + 1))])
  fails(f'text(path={bomb!r})', bomb, "member 'a.txt'", 'more than 67,108,864 bytes')
  log = b''.join(b'%d GET / HTTP/1.1 200 OK, as it was before\n' % i for i in range(50_000))
  dull = write(tmp_path, 'z.tgz', [(f'{i}', log) for i in range(40)])
  assert 40 * len(log) > _archives.SMALL and 40 * len(log) > 5 * os.path.getsize(dull)
  assert len(read(f'text(path={dull!r})')) == 40


def test_a_zip_that_declares_less_than_it_holds(tmp_path, small):
  """Its own word is not taken for it: the bytes and their checksum must agree with it."""
  data = zip_bytes([('a.txt', b'abc' * 1000)])
  at, path = central(data), tmp_path / 'x.zip'
  for size in (0, 10, 2999, 3001, 100_000):
    n = struct.pack('<I', size)
    path.write_bytes(patched(data, [(22, n), (at + 24, n)]))
    fails(f'text(path={str(path)!r})', path, "member 'a.txt'", 'is damaged')


def test_headers_of_a_tar_that_eat_memory(tmp_path):
  path = tmp_path / 'x.tar'
  head = info('././@PaxHeader', 1 << 40, tarfile.XHDTYPE).tobuf(tarfile.GNU_FORMAT)
  path.write_bytes(head + bytes(10_240))
  fails(f'text(path={str(path)!r})', path, 'is damaged', 'a header of 1099511627776 bytes')
  path.write_bytes(tar_bytes([(info('x', 0, tarfile.XGLTYPE), b'')] * 3000 + [('a', b'1')]))
  fails(f'text(path={str(path)!r})', path, 'is damaged')
  for size in (b'-1', b'99999999999999999999', b'x'):
    record = b' size=' + size + b'\n'
    record = str(len(record) + 2).encode() + record
    head = info('././@PaxHeader', len(record), tarfile.XHDTYPE).tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(head + record.ljust(512, b'\0') + tar_bytes([('a.txt', b'1')]))
    fails(f'text(path={str(path)!r})', path)


# ---- damage


def test_a_tar_cut_anywhere_is_refused(tmp_path):
  """Of the library's own, `tarfile` takes a cut between members for the end."""
  data, path = (
    tar_bytes([('a.txt', b'1' * 700), ('b.txt', b'2' * 512), ('c', b'')]),
    tmp_path / 'x.tar',
  )
  end = max(i for i in range(0, len(data), 512) if data[i : i + 512].strip(b'\0')) + 512
  for cut in (1, 100, 512, 1000, 1024, 1536, 1537, 2048, 2560, 2600, end - 512, end - 1, end):
    path.write_bytes(data[:cut])
    fails(f'text(path={str(path)!r})', path, 'is damaged')
    fails(f'jsonl(path={str(path)!r})', path, 'is damaged')
  path.write_bytes(data[: end + 512])  # one block of zeros ends it
  assert len(read(f'text(path={str(path)!r})')) == 3


def test_data_behind_the_end_is_not_left_out_in_silence(tmp_path):
  path, data = tmp_path / 'x.tar', tar_bytes([('a.txt', b'1')])
  path.write_bytes(data + data)
  fails(f'text(path={str(path)!r})', path, 'data behind its end')
  path.write_bytes(data + bytes(99_999))
  assert read(f'text(path={str(path)!r})') == ['1']


@pytest.mark.parametrize('suffix', ('.tar.gz', '.tgz', '.tar.xz', '.tar.bz2', '.tar.zst', '.zip'))
def test_cut_and_foreign_archives(tmp_path, suffix):
  noise = bytes(itertools.islice((i * i * 7919 >> 3 & 127 for i in range(10**6)), 60_000))
  path = write(tmp_path, f'x{suffix}', [('a.txt', noise), ('b.txt', noise[::-1])])
  data = open(path, 'rb').read()
  for cut in (len(data) // 3, len(data) - 30, len(data) - 1):
    open(path, 'wb').write(data[:cut])
    fails(f'text(path={path!r})', path, 'is damaged')
  open(path, 'wb').write(b'no archive at all')
  fails(f'text(path={path!r})', path, 'is damaged')


def test_a_changed_byte_in_a_zip_is_noticed(tmp_path):
  path = tmp_path / 'x.zip'
  path.write_bytes(
    zip_bytes([('a.txt', b'abcdef' * 99)], zipfile.ZIP_STORED).replace(b'fa', b'fb', 1)
  )
  fails(f'text(path={str(path)!r})', path, "member 'a.txt'", 'is damaged: Bad CRC-32')


def test_a_changed_byte_in_gzip_is_noticed(tmp_path):
  file, data = tmp_path / 'x.txt.gz', bytearray(gzip.compress(b'abc' * 10_000))
  data[20:30] = b'\xff' * 10
  file.write_bytes(data)
  fails(f'text(path={str(file)!r})', file, 'is damaged')
  fails(f'jsonl(path={str(file)!r})', file, 'is damaged')


@pytest.mark.parametrize('suffix', ('.tar', '.tar.zst', '.zip'))
def test_members_that_are_not_utf8_or_not_json(tmp_path, suffix):
  members = [('ok.jsonl', json_lines('a')), ('bad.jsonl', json_lines('b') + b'{"text": "\xe9"}')]
  path = write(tmp_path, f'x{suffix}', members)
  fails(f'text(path={path!r})', path, "member 'bad.jsonl'", 'is not utf-8 text: byte 0xe9')
  fails(f'jsonl(path={path!r})', path, "member 'bad.jsonl', line 2", 'not UTF-8')
  assert read(f'text(path={path!r}, encoding="latin-1")')[1].endswith('\xe9"}')
  path = write(tmp_path, f'y{suffix}', [('m.jsonl', b'\n[1]\n')])
  fails(f'jsonl(path={path!r})', path, "member 'm.jsonl', line 2", 'a JSON object')


WHOLE = {
  '.tar': tar_bytes([('a.jsonl', json_lines('a')), ('long' * 40, b'2' * 600), ('c', b'')]),
  '.zip': zip_bytes([('a.jsonl', json_lines('a')), ('b', b'2' * 600), ('c/', b'')]),
}
WHOLE['.tar.gz'] = gzip.compress(WHOLE['.tar'], mtime=0)
WHOLE['.lzma.zip'] = zip_bytes([('a.jsonl', json_lines('abc' * 99))], zipfile.ZIP_LZMA)
WHOLE['.bz2.zip'] = zip_bytes([('a.jsonl', json_lines('abc' * 99))], zipfile.ZIP_BZIP2)


def changed(tmp_path, suffix, changes, cut):
  data = bytearray(WHOLE[suffix])
  for at, byte in changes:
    data[at % len(data)] = byte
  path = tmp_path / f'x{suffix}'
  path.write_bytes(bytes(data[:cut]) or b'\0')
  for source in ('text', 'jsonl'):
    try:
      read(f'{source}(path={str(path)!r})')
    except ValueError as e:
      assert str(path) in str(e) and '\n' not in str(e), str(e)


CHANGES = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=4)
CUTS = st.none() | st.integers(0, 5000)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(sorted(WHOLE)), CHANGES, CUTS)
def test_any_damage_is_read_or_named(tmp_path_factory, suffix, changes, cut):
  changed(tmp_path_factory.mktemp('x'), suffix, changes, cut)


@pytest.mark.slow
@settings(max_examples=8_000, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(sorted(WHOLE)), CHANGES, CUTS)
def test_any_damage_is_read_or_named_at_length(tmp_path_factory, suffix, changes, cut):
  changed(tmp_path_factory.getbasetemp(), suffix, changes, cut)


# ---- fingerprints


def fingerprint(spec: str) -> str:
  return registry.make('source', spec)().fingerprint()


def test_the_fingerprint_is_of_contents_and_of_what_they_are_read_as(tmp_path):
  path = write(tmp_path, 'x.tar', encoded(TEXTS))
  first = fingerprint(f'text(path={path!r})')
  copy = tmp_path / 'sub' / 'y.tar'
  copy.parent.mkdir()
  copy.write_bytes(open(path, 'rb').read())
  assert fingerprint(f'text(path={str(copy)!r})') == first
  plain = copy.rename(copy.with_suffix('.txt'))
  assert fingerprint(f'text(path={str(plain)!r})') != first  # one document, not its members
  write(tmp_path, 'x.tar', encoded({**TEXTS, 'd': 'y' * 70_000}))
  assert fingerprint(f'text(path={path!r})') != first


def test_fingerprints_of_plain_files_are_what_they_were(tmp_path):
  """Token stores are found by them."""
  (tmp_path / 'x.txt').write_text('a')
  (tmp_path / 'x.jsonl').write_text('{}')
  files = [tmp_path / 'x.txt']
  old = _files.fingerprint(files, 'text', None, 'utf-8')
  assert fingerprint(f'text(path={str(files[0])!r})') == old
  old = _files.fingerprint([tmp_path / 'x.jsonl'], 'jsonl', 'text', None)
  assert fingerprint(f'jsonl(path={str(tmp_path / "x.jsonl")!r})') == old


def test_token_stores_of_archives_are_cached_by_content(tmp_path):
  tokenizer = registry.make('tokenizer', 'bytes()')()

  def stored(path):
    part = registry.make('source', f'text(path={path!r})')
    return store.stored(part, tokenizer, tmp_path / 'tokens', progress=False)

  path = write(tmp_path, 'x.tgz', [('a', b'one'), ('b', b'two')])
  assert [tokenizer.decode(stored(path)[i]) for i in range(2)] == ['one', 'two']
  assert len(os.listdir(tmp_path / 'tokens')) == 1 and stored(path) is not None
  assert len(os.listdir(tmp_path / 'tokens')) == 1
  write(tmp_path, 'x.tgz', [('a', b'one'), ('b', b'too')])
  assert tokenizer.decode(stored(path)[1]) == 'too'
  bad = write(tmp_path, 'y.zip', [('a', b'fine'), ('b', b'\xff')])
  with pytest.raises(ValueError, match="member 'b'"):
    stored(bad)
  assert len(os.listdir(tmp_path / 'tokens')) == 2  # no store of half an archive
