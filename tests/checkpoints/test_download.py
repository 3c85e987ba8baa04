"""Downloads land in the cache folder and nowhere else, whole or not at all."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path

import pytest
import torch

from repnext_mm.checkpoints import read_checkpoint
from repnext_mm.checkpoints.download import cached_name


class Server(http.server.BaseHTTPRequestHandler):
    """Answers every address with the file; below /torn with its first half."""

    content = b''

    def do_GET(self):
        self.send_response(200)
        self.send_header('Content-Length', str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content[: len(self.content) // 2] if self.path.startswith('/torn') else self.content)

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
        ('/models/m0.pth', 'm0.pth'),
        ('/m0.pth?to=/../../escape.pth', 'm0.pth'),
        ('/m0.pth#/../../escape.pth', 'm0.pth'),
        ('/a/..%2F..%2F..%2Fescape.pth', 'escape.pth'),
        ('/a/..%5C..%5Cescape.pth', 'escape.pth'),
        ('/a/%2E%2E/../escape.pth', 'escape.pth'),
        ('/...pth', 'pth'),
        ('/a%00b%0Ac.pth', 'a_b_c.pth'),
        ('/' + 300 * 'x' + '.pth', 124 * 'x' + '.pth'),
    ],
)
def test_downloads_stay_in_the_cache(address, name, server, tmp_path):
    before = files_below(tmp_path)
    assert read_checkpoint(server + address)['state_dict']['w'].tolist() == [5, 5, 5]
    assert files_below(tmp_path) - before == {Path('torch_home/hub/checkpoints', name)}


@pytest.mark.parametrize('address', ['http://host', 'https://host/', 'https://host/a/..', 'https://host/%2E?x=a.pth'])
def test_an_address_without_a_file_is_refused(address):
    with pytest.raises(ValueError, match='names no file'):
        cached_name(address)


def test_a_torn_download_is_not_kept(server, tmp_path):
    with pytest.raises(ValueError, match=r'was not downloaded \(\d+ of \d+ bytes came\)'):
        read_checkpoint(server + '/torn/m0.pth')
    assert not list((tmp_path / 'torch_home').rglob('*m0*'))
    with pytest.raises(ValueError, match='was not downloaded'):
        read_checkpoint('http://127.0.0.1:1/m0.pth')


def files_below(root):
    return {path.relative_to(root) for path in root.rglob('*') if path.is_file()}
