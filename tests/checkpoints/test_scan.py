"""What a file asks for is found by the reader's own steps: no instruction hides a name from it."""

from __future__ import annotations

import os
import pickle
import struct

import pytest
import torch

from repnext_mm.checkpoints import read_checkpoint, unsafe_globals
from tests.checkpoints.pickles import archived, call, found, get, put, text, tuple_of

HIDDEN = {
    'GLOBAL': found('posix.system'),
    'STACK_GLOBAL': text('posix') + text('system') + b'\x93',
    'STACK_GLOBAL, other text between': text('posix') + text('system') + text('x') + b'0\x93',
    'STACK_GLOBAL, from the memo': text('posix') + put(1) + text('system') + put(2) + get(1) + get(2) + b'\x93',
    'STACK_GLOBAL, from a memo that is written twice': (
        text('x') + b'q\x01' + b'0' + text('posix') + b'q\x01' + b'0' + text('system') + b'q\x02' + b'0h\x01h\x02\x93'
    ),
    'STACK_GLOBAL, MEMOIZE after a number': (
        b'K\x01\x940' + text('posix') + b'\x940' + text('system') + b'\x940' + b'h\x01h\x02\x93'
    ),
    'STACK_GLOBAL, a copy': text('posix') + text('system') + b'2\x85' + b'0\x93',
    'STACK_GLOBAL, short texts': b'\x8c\x05posix\x8c\x06system\x93',
    'STACK_GLOBAL, long texts': b'\x8d' + struct.pack('<Q', 5) + b'posixU\x06system\x93',
    'STACK_GLOBAL, marks': b'(' + text('x') + b'1' + text('posix') + text('system') + b'\x93',
    'in a frame': b'\x95' + struct.pack('<Q', 15) + b'cposix\nsystem\n0N',
    'INST': b'(' + text('true') + b'iposix\nsystem\n',
    'OBJ': b'(' + found('posix.system') + text('true') + b'o',
    'NEWOBJ': found('posix.system') + b')\x81',
    'NEWOBJ_EX': found('posix.system') + b')}\x92',
    'REDUCE': call('posix.system', text('true')),
    'the result of a call': call('posix.system', text('true')) + b')R',
    'after a call that is refused': call('builtins.getattr', b'N', text('x')) + b'0' + found('posix.system'),
    'before damage': found('posix.system') + b'0\xff',
    'as a key': b'}' + found('posix.system') + b'Ns',
    'as a state': found('argparse.Namespace') + b')\x81}' + text('a') + found('posix.system') + b'sb',
    'as a type of numbers': tuple_of(text('storage'), found('posix.system'), text('0'), text('cpu'), b'K\x01') + b'Q',
}


def legacy(path, content):
    head = b''.join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True}))
    path.write_bytes(head + content + pickle.dumps([], 2))
    return path


@pytest.mark.parametrize('written', [archived, legacy], ids=['zip', 'legacy'])
@pytest.mark.parametrize('way', HIDDEN)
def test_names_are_found_and_refused(way, written, tmp_path):
    path = written(tmp_path / 'a.pth', b'\x80\x04}' + text('w') + HIDDEN[way] + b's.')
    assert 'posix.system' in unsafe_globals(path)
    with pytest.raises(ValueError, match=r'could run code|is not a weight file'):
        read_checkpoint(path)


@pytest.mark.parametrize('way', HIDDEN)
def test_names_of_a_bare_pickle_are_found(way, tmp_path):
    (tmp_path / 'a.pkl').write_bytes(b'\x80\x04}' + text('w') + HIDDEN[way] + b's.')
    assert 'posix.system' in unsafe_globals(tmp_path / 'a.pkl')


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_names_after_the_first_are_found_too(zipped, tmp_path):
    content = {'w': torch.ones(1), 'a': os.system, 'module': torch.nn.Linear(2, 2), 'b': os.popen}
    torch.save(content, tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
    found_names = unsafe_globals(tmp_path / 'a.pth')
    assert {f'{os.system.__module__}.system', 'os.popen', 'torch.nn.modules.linear.Linear'} <= set(found_names)
    assert found_names == sorted(found_names)


@pytest.mark.slow
@pytest.mark.parametrize('way', HIDDEN)
def test_another_scanner_agrees(way, tmp_path):
    """picklescan, where it is installed: a second opinion on the same files."""
    scanner = pytest.importorskip('picklescan.scanner')
    path = archived(tmp_path / 'a.pth', b'\x80\x04}' + text('w') + HIDDEN[way] + b's.')
    result = scanner.scan_file_path(str(path))
    if result.scan_err:  # there are instructions that it does not follow
        pytest.skip('picklescan could not read it')
    theirs = {f'{name.module}.{name.name}' for name in result.globals if name.safety.name == 'Dangerous'}
    theirs = {name for name in theirs if 'unknown' not in name.split('.')}  # it says so where it loses track
    assert theirs <= set(unsafe_globals(path))
