"""Weights of a repository of the Hugging Face Hub, with its own client or without; the hub stands on 127.0.0.1."""

from __future__ import annotations

import sys

import pytest
import torch

from repnext_mm.checkpoints import read_checkpoint, state_dict_of, write_checkpoint
from tests.weight_server import serving

CLIENTS = ['client', 'no client']


@pytest.fixture(params=CLIENTS)
def hub(request, tmp_path, monkeypatch):
    if request.param == 'client':
        pytest.importorskip('huggingface_hub')
        from huggingface_hub import constants

        monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
        monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)
    else:
        monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch_home'))
    file = write_checkpoint(tmp_path / 'model.safetensors', {'w': torch.full((3,), 5.0)})
    torch.save({'w': torch.full((3,), 6.0)}, tmp_path / 'other.bin')
    with serving(b'') as server:
        server.files['/owner/name/resolve/main/model.safetensors'] = file.read_bytes()
        server.files['/owner/old/resolve/main/pytorch_model.bin'] = (tmp_path / 'other.bin').read_bytes()
        server.files['/owner/name/resolve/v2/sub/other.bin'] = (tmp_path / 'other.bin').read_bytes()
        monkeypatch.setenv('HF_ENDPOINT', server.address)
        yield server


@pytest.mark.parametrize(
    ('source', 'value'),
    [('hf-hub:owner/name', 5), ('hf-hub:owner/old', 6), ('hf-hub:owner/name@v2:sub/other.bin', 6)],
)
def test_the_file_is_found_and_kept(source, value, hub):
    for _ in range(2):
        assert state_dict_of(read_checkpoint(source))['w'].tolist() == [value] * 3
        hub.shutdown()  # the second time, nobody is asked


@pytest.mark.parametrize(
    ('source', 'words'),
    [
        ('hf-hub:owner/none', r'owner/none was not downloaded'),
        ('hf-hub:owner/name:other.bin', r'name:other\.bin was not downloaded'),
        ('hf-hub:name', r'hf-hub:name is not hf-hub:OWNER/NAME'),
        ('hf-hub:../name', r'was not downloaded|is not hf-hub:OWNER/NAME'),
    ],
)
def test_what_is_not_there_is_one_sentence(source, words, hub):
    with pytest.raises(ValueError, match=words) as caught:
        read_checkpoint(source)
    assert len(str(caught.value).splitlines()) == 1


def test_without_a_hub(hub, monkeypatch):
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:1')
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # between its tries
    with pytest.raises(FileNotFoundError, match='was not downloaded') as caught:
        read_checkpoint('hf-hub:owner/other')
    assert len(str(caught.value).splitlines()) == 1
