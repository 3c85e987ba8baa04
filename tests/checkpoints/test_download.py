"""Downloads land in the cache folder and nowhere else, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from repnext_mm.checkpoints import read_checkpoint
from repnext_mm.checkpoints.download import cached_name
from tests.weight_server import serving


@pytest.fixture
def server(tmp_path, monkeypatch):
    torch.save({'state_dict': {'w': torch.full((3,), 5.0)}}, tmp_path / 'served.pth')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch_home'))
    with serving((tmp_path / 'served.pth').read_bytes()) as found:
        yield found


@pytest.mark.parametrize(
    ('address', 'name'),
    [
        ('/models/m0.pth', 'm0-*.pth'),
        ('/m0.pth?to=/../../escape.pth', 'm0-*.pth'),
        ('/m0.pth#/../../escape.pth', 'm0-*.pth'),
        ('/a/..%2F..%2F..%2Fescape.pth', 'escape-*.pth'),
        ('/a/..%5C..%5Cescape.pth', 'escape-*.pth'),
        ('/a/%2E%2E/../escape.pth', 'escape-*.pth'),
        ('/...pth', 'pth-*'),
        ('/a%00b%0Ac.pth', 'a_b_c-*.pth'),
        ('/' + 300 * 'x' + '.pth', 124 * 'x' + '-*.pth'),
        ('/' + 300 * 'ü' + '.pth', 124 * '_' + '-*.pth'),
        ('/a b c.pth.tar', 'a_b_c.pth-*.tar'),
        ('/download', 'download-*'),
        ('/download?file=m0.pth&token=%2F', 'download-*'),
        ('/', 'weights-*'),
        ('', 'weights-*'),
        ('?id=3', 'weights-*'),
        ('/a/..', 'weights-*'),
        ('/m0.a-long-suffix-that-is-none', 'm0.a-long-suffix-that-is-none-*'),
    ],
)
def test_downloads_stay_in_the_cache(address, name, server, tmp_path):
    before = files_below(tmp_path)
    assert read_checkpoint(server.address + address)['state_dict']['w'].tolist() == [5, 5, 5]
    made = files_below(tmp_path) - before
    assert {path.parent for path in made} == {Path('torch_home/hub/checkpoints')}
    (file,) = [path for path in made if path.match(name) and path.suffix != '.sha256']
    assert made <= {file, file.with_name(f'{file.name}.sha256'), file.with_name(f'.{file.name}.lock')}
    server.asked.clear()
    assert read_checkpoint(server.address + address)['state_dict']['w'].tolist() == [5, 5, 5]
    assert server.asked == []  # it was kept


def test_different_addresses_are_different_files():
    addresses = [
        'http://a/m.pth',
        'https://a/m.pth',
        'http://b/m.pth',
        'http://a/x/m.pth',
        'http://a:1/m.pth',
        'http://a/m.pth?v=1',
        'http://a/m.pth?v=2',
        'http://a/d?f=m.pth',
        'http://a/d?f=n.pth',
        'http://a/',
    ]
    assert len({cached_name(address) for address in addresses}) == len(addresses)
    assert cached_name('HTTP://a/m.pth#part') == cached_name('http://a/m.pth')  # one file


@pytest.mark.parametrize('address', ['http://', 'https:///m0.pth', 'http://[::1/m0.pth'])
def test_an_address_without_a_host_is_refused(address):
    with pytest.raises(ValueError, match='names no host|is not an address'):
        read_checkpoint(address)


@pytest.mark.parametrize(
    ('path', 'reason'),
    [
        ('/login/m0.pth', 'it is a web page'),
        ('/torn/m0.pth', r'\(\d+ of \d+ bytes came\)'),
        ('/more/m0.pth', r'\(\d+ of \d+ bytes came\)'),
        ('/endless/torn/m0.pth', 'are not a whole file'),
        ('/gone/m0.pth', 'HTTP Error 404'),
    ],
)
def test_what_did_not_come_as_a_whole_is_not_kept(path, reason, server, tmp_path):
    with pytest.raises(FileNotFoundError, match=f'was not downloaded .*{reason}.*: check the address, or') as caught:
        read_checkpoint(server.address + path)
    assert '\n' not in str(caught.value)
    assert not [file for file in (tmp_path / 'torch_home').rglob('*m0*') if file.suffix != '.lock']


def test_a_file_of_unknown_size_is_kept_when_it_is_whole(server):
    assert read_checkpoint(f'{server.address}/endless/m0.pth')['state_dict']['w'].tolist() == [5, 5, 5]


def test_without_a_server_it_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    with pytest.raises(ValueError, match='http://127.0.0.1:1/m0.pth was not downloaded'):
        read_checkpoint('http://127.0.0.1:1/m0.pth')


def test_what_torch_fetched_is_used_where_its_name_proves_it(server, tmp_path):
    folder = tmp_path / 'torch_home/hub/checkpoints'
    folder.mkdir(parents=True)
    right = hashlib.sha256(server.content).hexdigest()[:8]
    for digest, fetched in ((right, 0), ('0123abcd', 1)):
        (folder / f'm0-{digest}.pth').write_bytes(server.content)
        server.asked.clear()
        read_checkpoint(f'{server.address}/m0-{digest}.pth')
        assert len(server.asked) == fetched


def test_bytes_that_change_later_are_noticed(server, tmp_path):
    address = f'{server.address}/m0.pth'
    read_checkpoint(address)
    (record,) = (tmp_path / 'torch_home').rglob('*.sha256')
    file = record.with_suffix('')
    assert record.read_text() == f'{hashlib.sha256(server.content).hexdigest()}  {file.name}\n'
    torch.save({'state_dict': {'w': torch.full((3,), 6.0)}}, file)  # whole, and not what came
    with pytest.raises(ValueError, match=rf'{re.escape(file.name)} has changed since .*: remove it and .*\.sha256'):
        read_checkpoint(address)
    file.unlink()
    record.unlink()
    assert read_checkpoint(address)['state_dict']['w'].tolist() == [5, 5, 5]


def test_processes_that_ask_at_once_download_once(server, tmp_path):
    code = f"from repnext_mm.checkpoints import read_checkpoint; read_checkpoint('{server.address}/slow/m0.pth')"
    started = [subprocess.Popen([sys.executable, '-c', code]) for _ in range(3)]
    assert [process.wait(120) for process in started] == [0, 0, 0]
    assert server.asked == ['/slow/m0.pth']


def test_a_killed_download_leaves_nothing_that_counts(server, tmp_path):
    code = f"from repnext_mm.checkpoints import read_checkpoint; read_checkpoint('{server.address}/slow/m0.pth')"
    process = subprocess.Popen([sys.executable, '-c', code])
    while not server.asked:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert read_checkpoint(f'{server.address}/slow/m0.pth')['state_dict']['w'].tolist() == [5, 5, 5]


@pytest.mark.skipif(os.name == 'nt' or os.geteuid() == 0, reason='root writes anywhere')
def test_a_cache_that_others_own_is_read(server, tmp_path):
    folder = tmp_path / 'torch_home/hub/checkpoints'
    folder.mkdir(parents=True)
    (folder / cached_name(f'{server.address}/m0.pth')).write_bytes(server.content)
    folder.chmod(0o555)
    assert read_checkpoint(f'{server.address}/m0.pth')
    with pytest.raises(OSError, match='was not written'):
        read_checkpoint(f'{server.address}/m1.pth')


def files_below(root):
    return {path.relative_to(root) for path in root.rglob('*') if path.is_file()}
