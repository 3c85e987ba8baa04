"""Pre-trained files load completely or not at all."""

from __future__ import annotations

import logging

import pytest
import torch
from mmengine.logging import MMLogger

from repnext_mm import RepNeXt
from repnext_mm.checkpoints import read_checkpoint, state_dict_of
from repnext_mm.checkpoints.load import backbone_state


@pytest.fixture
def authors_file(tmp_path, golden_state):
    """A file as the authors' classification training writes it: ``model`` with two heads."""
    path = tmp_path / 'repnext_m0_distill_300e.pth'
    torch.save({'model': golden_state}, path)
    return path


def built(path, arch='m0', **entry) -> RepNeXt:
    model = RepNeXt(arch, init_cfg={'type': 'Pretrained', 'checkpoint': str(path), **entry})
    model.init_weights()
    return model


def test_the_authors_classifier_loads_strictly(authors_file, golden_state, caplog):
    caplog.set_level(logging.INFO)
    MMLogger.get_instance('load-test').addHandler(caplog.handler)
    state = built(authors_file).state_dict()
    assert len(state) == 657
    for key, value in state.items():
        assert torch.equal(value, golden_state[key].to(value.dtype)), key
    assert f'RepNeXt: loaded 657/657 tensors, dropped 14 tensors of head from {authors_file}' in caplog.text


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_numbers_that_are_not_finite_are_named(tmp_path, golden_state, caplog, value):
    key = 'stages.0.blocks.0.norm.weight'
    torch.save({'model': {**golden_state, key: torch.full_like(golden_state[key], value)}}, tmp_path / 'm0.pth')
    caplog.set_level(logging.INFO)
    MMLogger.get_instance('load-test').addHandler(caplog.handler)
    built(tmp_path / 'm0.pth')
    assert f', NOT FINITE (NaN or infinity) in {key}' in caplog.text


def test_mmengine_alone_would_load_nothing_of_it(authors_file, golden_state):
    """Why the backbone reads the file itself: mmengine looks only for `state_dict`, and does not complain."""
    from mmengine.model import BaseModule

    model = RepNeXt('m0', init_cfg={'type': 'Pretrained', 'checkpoint': str(authors_file)})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    BaseModule.init_weights(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    'wrap',
    [
        lambda s: s,
        lambda s: {'state_dict': s},
        lambda s: {'model': {f'module.{k}': v for k, v in s.items()}},
        lambda s: {
            'state_dict': {f'backbone.{k}': v for k, v in s.items()} | {'neck.weight': torch.ones(1)},
            'meta': {},
        },
    ],
    ids=['bare', 'state_dict', 'data parallel', 'detector'],
)
def test_other_wrappings(tmp_path, golden_state, wrap):
    state = {key: value for key, value in golden_state.items() if not key.startswith('head.')}
    torch.save(wrap(state), tmp_path / 'weights.pth')
    loaded = built(tmp_path / 'weights.pth').state_dict()
    assert all(torch.equal(loaded[key], value.to(loaded[key].dtype)) for key, value in state.items())


def test_prefix(tmp_path, golden_state):
    state = {f'student.net.{key}': value for key, value in golden_state.items() if not key.startswith('head.')}
    torch.save({'state_dict': state | {'teacher.weight': torch.ones(1)}}, tmp_path / 'weights.pth')
    loaded = built(tmp_path / 'weights.pth', prefix='student.net').state_dict()
    key = 'stem.stem.0.conv.weight'
    assert torch.equal(loaded[key], golden_state[key].float())
    with pytest.raises(ValueError, match="no key below prefix 'pupil.'"):
        built(tmp_path / 'weights.pth', prefix='pupil')


def test_other_initializations_still_run(authors_file, golden_state):
    constant = {'type': 'Constant', 'val': 3.0, 'layer': 'Conv2d'}
    model = RepNeXt('m0', init_cfg=[constant])
    model.init_weights()
    assert (model.stem.stem[0].conv.weight == 3).all()
    both = RepNeXt('m0', init_cfg=[constant, {'type': 'Pretrained', 'checkpoint': str(authors_file)}])
    both.init_weights()
    key = 'stem.stem.0.conv.weight'
    assert torch.equal(both.state_dict()[key], golden_state[key].float())
    assert both.init_cfg == [constant, {'type': 'Pretrained', 'checkpoint': str(authors_file)}]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: s.pop('stem.stem.0.conv.weight'), r'1 missing \(stem.stem.0.conv.weight\)'),
        (lambda s: s.update({'stages.9.weight': torch.ones(1)}), r'1 unexpected \(stages.9.weight\)'),
        (
            lambda s: s.update({'stem.stem.0.conv.weight': torch.ones(1)}),
            r'has shape \(1,\), the model \(20, 3, 3, 3\)',
        ),
    ],
    ids=['missing', 'unexpected', 'shape'],
)
def test_what_does_not_fit_changes_nothing(tmp_path, golden_state, change, message):
    change(golden_state := dict(golden_state))
    torch.save({'model': golden_state}, tmp_path / 'weights.pth')
    model = RepNeXt('m0', init_cfg={'type': 'Pretrained', 'checkpoint': str(tmp_path / 'weights.pth')})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        model.init_weights()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_another_arch_is_refused(authors_file):
    with pytest.raises(ValueError, match='does not fit this RepNeXt.*set arch'):
        built(authors_file, arch='m1')


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='no weight file at'):
        built(tmp_path / 'nowhere.pth')


def test_files_that_are_no_checkpoints(tmp_path):
    path = tmp_path / 'weights.pth'
    path.write_bytes(b'')
    with pytest.raises(ValueError, match='is not a weight file or is corrupt|was not read: it'):
        read_checkpoint(path)
    path.write_text('<html>not found</html>')
    with pytest.raises(ValueError, match='is not a weight file or is corrupt|was not read: it'):
        read_checkpoint(path)
    torch.save(torch.ones(1), path)
    with pytest.raises(ValueError, match='holds a Tensor'):
        read_checkpoint(path)
    with pytest.raises(ValueError, match='no tensors among the entries'):
        state_dict_of({'epoch': 3})


class Planted:
    executed = False

    def __reduce__(self):
        return Planted._run, ()

    @staticmethod
    def _run():
        Planted.executed = True


def test_nothing_in_a_file_is_executed(tmp_path):
    torch.save({'model': {'stem.weight': torch.ones(1)}, 'args': Planted()}, tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match=r"asks for 'tests\.checkpoints\.test_load\.Planted'.*--trust-pickle"):
        read_checkpoint(tmp_path / 'weights.pth')
    assert not Planted.executed
    read_checkpoint(tmp_path / 'weights.pth', trust_pickle=True)
    assert Planted.executed


def test_head_keys_are_the_only_ones_dropped(golden_state):
    kept, dropped = backbone_state(golden_state)
    assert len(kept) == 657
    assert {key.split('.')[0] for key in dropped} == {'head'}


def test_a_fused_file_loads_into_the_deploy_form(tmp_path):
    source = RepNeXt('m0').switch_to_deploy()
    torch.save({'state_dict': source.state_dict()}, tmp_path / 'fused.pth')
    model = RepNeXt('m0', deploy=True, init_cfg={'type': 'Pretrained', 'checkpoint': str(tmp_path / 'fused.pth')})
    model.init_weights()
    ours, theirs = model.state_dict(), source.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
