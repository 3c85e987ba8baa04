"""Downloads land in the cache folder and nowhere else, whole or not at all."""

from __future__ import annotations

import hashlib
import http.server
import threading
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from repnext_mm.checkpoints import read_checkpoint
from repnext_mm.checkpoints.download import cached_name


class Server(http.server.BaseHTTPRequestHandler):
    """Answers every address with the file; below /torn with its first half, below /login with a page."""

    content = b''
    asked: ClassVar[list[str]] = []

    def do_GET(self):
        self.asked.append(self.path)
        content = b'<!DOCTYPE html><html>' if self.path.startswith('/login') else self.content
        self.send_response(200)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.path.startswith('/torn') else content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    torch.save({'state_dict': {'w': torch.full((3,), 5.0)}}, tmp_path / 'served.pth')
    monkeypatch.setattr(Server, 'content', (tmp_path / 'served.pth').read_bytes())
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch_home'))
    monkeypatch.setenv('no_proxy', '*')
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server) as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        yield f'http://127.0.0.1:{found.server_port}'
        found.shutdown()
        thread.join()


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
    assert read_checkpoint(server + address)['state_dict']['w'].tolist() == [5, 5, 5]
    (made,) = files_below(tmp_path) - before
    assert made.parent == Path('torch_home/hub/checkpoints')
    assert made.match(name)
    Server.asked.clear()
    assert read_checkpoint(server + address)['state_dict']['w'].tolist() == [5, 5, 5]
    assert Server.asked == []  # it was kept


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


def test_a_page_in_the_place_of_a_file_is_not_kept(server, tmp_path):
    with pytest.raises(ValueError, match='was not downloaded .*it is a web page'):
        read_checkpoint(server + '/login/m0.pth')
    assert not list((tmp_path / 'torch_home').rglob('*m0*'))


def test_what_torch_fetched_is_used_where_its_name_proves_it(server, tmp_path):
    folder = tmp_path / 'torch_home/hub/checkpoints'
    folder.mkdir(parents=True)
    right = hashlib.sha256(Server.content).hexdigest()[:8]
    for digest, fetched in ((right, 0), ('0123abcd', 1)):
        (folder / f'm0-{digest}.pth').write_bytes(Server.content)
        Server.asked.clear()
        read_checkpoint(f'{server}/m0-{digest}.pth')
        assert len(Server.asked) == fetched


def test_a_torn_download_is_not_kept(server, tmp_path):
    with pytest.raises(ValueError, match=r'was not downloaded \(\d+ of \d+ bytes came\)'):
        read_checkpoint(server + '/torn/m0.pth')
    assert not list((tmp_path / 'torch_home').rglob('*m0*'))
    with pytest.raises(ValueError, match='was not downloaded'):
        read_checkpoint('http://127.0.0.1:1/m0.pth')


def files_below(root):
    return {path.relative_to(root) for path in root.rglob('*') if path.is_file()}
