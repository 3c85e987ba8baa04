"""Whether a file is whole, for each way to save one."""

from __future__ import annotations

import pytest
import torch

from repnext_mm.hooks.resume import is_whole

CONTENT = {'w': torch.arange(6.0), 'v': torch.arange(300), 'e': torch.empty(0), 'n': {'a': [1, 'text']}}


@pytest.fixture(params=['zip', 'without check sums', 'legacy', 'TorchScript'])
def saved(request, tmp_path):
    path = tmp_path / 'a.pth'
    if request.param == 'TorchScript':
        torch.jit.script(torch.nn.Linear(2, 3)).save(str(path))
    elif request.param == 'without check sums':
        options = getattr(torch.serialization, 'set_crc32_options', None)
        if options is None:
            pytest.skip('this torch always writes check sums')
        options(False)
        try:
            torch.save(CONTENT, path)
        finally:
            options(True)
    else:
        torch.save(CONTENT, path, _use_new_zipfile_serialization=request.param == 'zip')
    return path, request.param


def test_whole_and_cut(saved, tmp_path):
    path, _ = saved
    whole = path.read_bytes()
    assert is_whole(path)
    for length in range(0, len(whole) - 1, max(1, len(whole) // 40)):
        (tmp_path / 'cut').write_bytes(whole[:length])
        assert not is_whole(tmp_path / 'cut'), length


def test_zeros_of_a_power_cut(saved, tmp_path):
    """A whole file system block of zeros; where there are no check sums, a lost header is what shows it."""
    path, kind = saved
    whole = path.read_bytes()
    for start in range(0, len(whole), 512):
        block = whole[start : start + 512]
        if any(block) and kind not in ('without check sums', 'legacy'):
            (tmp_path / 'torn').write_bytes(whole[:start] + bytes(len(block)) + whole[start + 512 :])
            assert not is_whole(tmp_path / 'torn'), start
    (tmp_path / 'torn').write_bytes(bytes(len(whole)))
    assert not is_whole(tmp_path / 'torn')


def test_check_sums_are_missing_in_all_records_or_in_none(tmp_path):
    """A sum of zero in one record alone is damage."""
    torch.save(CONTENT, tmp_path / 'a.pth')
    data = bytearray((tmp_path / 'a.pth').read_bytes())
    place = data.find(b'PK\x01\x02')
    data[place + 16 : place + 20] = bytes(4)
    (tmp_path / 'a.pth').write_bytes(data)
    assert not is_whole(tmp_path / 'a.pth')


def test_other_files_are_not_whole_checkpoints(tmp_path):
    (tmp_path / 'empty').touch()
    (tmp_path / 'text').write_text('text')
    assert not any(is_whole(tmp_path / name) for name in ('empty', 'text', 'absent'))
    assert is_whole(tmp_path)  # a folder of shards
