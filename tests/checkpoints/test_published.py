"""The authors' weights by name: found here, fetched whole, or one sentence; and the table agrees with the metafiles."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import yaml

from repnext_mm import RepNeXt
from repnext_mm.checkpoints import PUBLISHED, local_file, read_checkpoint
from repnext_mm.checkpoints.published import MIRROR, RELEASE, published, weights_of
from tests.checkpoints.files import typed
from tests.weight_server import serving

ROOT = Path(__file__).parents[2]
NAME = 'repnext_m0_distill_300e'
METRICS = {'top-1': 'Top 1 Accuracy', 'box AP': 'box AP', 'mask AP': 'mask AP', 'mIoU': 'mIoU'}
MODELS = [
    model for path in (ROOT / 'configs').glob('*_metafile.yml') for model in yaml.safe_load(path.read_text())['Models']
]


@pytest.fixture
def release(tmp_path, monkeypatch, golden_state):
    """The authors' page with M0's file on it, an empty cache, and an empty working directory."""
    torch.save({'model': typed(golden_state)}, tmp_path / 'served.pth')
    content = (tmp_path / 'served.pth').read_bytes()
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch_home'))
    with serving(content) as server:
        server.files[f'/{NAME}.pth'] = content
        monkeypatch.setenv(MIRROR, server.address)
        yield server


@pytest.fixture
def cached(release, tmp_path):
    return tmp_path / f'torch_home/hub/checkpoints/{NAME}.pth'


def test_the_table_is_that_of_the_metafiles():
    listed = {model['Weights']: model for model in MODELS if 'Weights' in model}
    assert set(listed) == {entry.address for entry in PUBLISHED.values() if not entry.name.endswith('_fused')}
    for entry in PUBLISHED.values():
        model = listed[entry.address.replace('_fused.pt', '.pth')]
        figures = {name: value for result in model['Results'] for name, value in result['Metrics'].items()}
        assert entry.reported == {name: figures[METRICS[name]] for name in entry.reported}
        arch = model['Metadata']['Architecture'].lower()
        assert entry.arch == (arch.removeprefix('repnext-') if arch.startswith('repnext') else None)


def test_every_address_is_linked_in_the_documents():
    shown = (ROOT / 'docs/records/reported_results.md').read_text()
    assert all(f'({entry.address})' in shown for entry in PUBLISHED.values())
    assert published(RELEASE) is published(f'{RELEASE}/other.pth') is published('elsewhere/' + NAME) is None


@pytest.mark.parametrize('source', [NAME, f'{NAME}.pth', f'pretrain/{NAME}.pth', f'{RELEASE}/{NAME}.pth'])
def test_each_spelling_is_one_file_that_is_fetched_once(source, release, cached):
    assert local_file(source) == cached
    assert release.asked == [f'/{NAME}.pth']
    assert cached.read_bytes() == release.content
    assert {file.name.removeprefix('.') for file in cached.parent.iterdir()} <= {
        cached.name,
        f'{cached.name}.sha256',
        f'{cached.name}.lock',
    }
    assert local_file(source) == local_file(NAME) == cached
    assert len(release.asked) == 1


def test_what_is_here_wins_and_nobody_is_asked(release, cached):
    cached.parent.mkdir(parents=True)
    cached.write_bytes(release.content)  # put there by hand
    assert local_file(NAME) == cached
    Path('pretrain').mkdir()
    Path(f'pretrain/{NAME}.pth').write_bytes(release.content)
    assert local_file(NAME) == local_file(f'{RELEASE}/{NAME}.pth') == Path(f'pretrain/{NAME}.pth')
    Path(f'{NAME}.pth').write_bytes(release.content)
    assert local_file(f'{NAME}.pth') == Path(f'{NAME}.pth')
    assert release.asked == []


def test_bytes_that_change_in_the_cache_are_noticed(release, cached):
    local_file(NAME)
    cached.write_bytes(release.content.replace(b'PK', b'pK'))
    with pytest.raises(ValueError, match=rf'{cached.name} has changed since it was first used') as caught:
        local_file(NAME)
    assert not isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize('how', ['no server', 'not there', 'a page'])
def test_offline_it_is_one_sentence_with_address_and_folders(how, release, cached, monkeypatch):
    if how == 'no server':
        monkeypatch.setenv(MIRROR, 'http://127.0.0.1:1')
    elif how == 'not there':
        release.files = {'/other': b''}
    else:
        release.files[f'/{NAME}.pth'] = b'<!DOCTYPE html><html>'
    with pytest.raises(FileNotFoundError, match='was not downloaded') as caught:
        read_checkpoint(NAME)
    said = str(caught.value)
    assert f'{RELEASE}/{NAME}.pth' in said
    assert str(cached.parent) in said
    assert 'or in pretrain/ of the working directory' in said
    assert len(said.splitlines()) == 1
    assert not cached.exists()


def test_a_name_that_is_nearly_right(release):
    with pytest.raises(
        FileNotFoundError, match=f"no weight file at repnext_m0_distil_300e: .*, or the published '{NAME}'"
    ):
        read_checkpoint('repnext_m0_distil_300e')
    with pytest.raises(FileNotFoundError, match=r'no weight file at elsewhere/repnext_m0_distill_300e\.pth'):
        read_checkpoint(f'elsewhere/{NAME}.pth')
    assert release.asked == []


def test_short_names():
    assert weights_of('m1', 'distill_300e') == 'repnext_m1_distill_300e'
    assert weights_of('m3', 'coco') == 'repnext_m3_coco'
    for other in (NAME, 'some/file', 'file.pth', 'hf-hub:owner/name', 'https://host/file', r'C:\file'):
        assert weights_of('m1', other) == other
    with pytest.raises(
        ValueError, match="weights='distil' are not published for arch 'm1': give one of distill_300e, "
    ):
        weights_of('m1', 'distil')
    with pytest.raises(ValueError, match="not published for arch 'm0e': give a file"):
        weights_of('m0e', 'distill_300e')


@pytest.mark.parametrize('source', ['distill_300e', NAME, 'file'])
def test_a_backbone_with_weights(source, release, cached, golden_state):
    if source == 'file':
        source = str(local_file(NAME))
    model = RepNeXt('m0', weights=source)
    state = model.state_dict()
    assert all(torch.equal(value, golden_state[key].to(value.dtype)) for key, value in state.items())
    model.stem.stem[0].conv.weight.data.zero_()
    model.init_weights()  # as mmengine does, after it has initialized the whole model around the backbone
    assert all(torch.equal(value, golden_state[key].to(value.dtype)) for key, value in model.state_dict().items())


def test_weights_are_loaded_strictly(release):
    release.files['/repnext_m1_distill_300e.pth'] = release.content  # M0's
    with pytest.raises(ValueError, match='does not fit this RepNeXt: .* missing'):
        RepNeXt('m1', weights='distill_300e')
    with pytest.raises(ValueError, match=f'weights=.{NAME}. and init_cfg=.* both say how to start'):
        RepNeXt('m0', weights=NAME, init_cfg=dict(type='Pretrained', checkpoint=NAME))
    with pytest.raises(ValueError, match='the file is not fused .* build it with deploy=False'):
        RepNeXt('m0', weights=NAME, deploy=True)


@pytest.mark.parametrize('checkpoint', [NAME, f'pretrain/{NAME}.pth'])
def test_a_config_s_backbone_finds_them_and_says_where(checkpoint, release, cached, golden_state, caplog):
    model = RepNeXt('m0', init_cfg=dict(type='Pretrained', checkpoint=checkpoint))
    assert release.asked == []  # building downloads nothing
    with caplog.at_level(logging.INFO):
        model.init_weights()
    assert torch.equal(model.stem.stem[0].conv.weight, golden_state['stem.stem.0.conv.weight'].float())
    assert release.asked == [f'/{NAME}.pth']
