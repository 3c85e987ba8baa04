"""Fused files in a classifier: tested in deploy form, whatever form the config builds; averaged weights."""

from __future__ import annotations

import logging

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from repnext_mm.apis.build import build_model
from repnext_mm.apis.safe_loading import reading_safely
from repnext_mm.hooks import StrictLoadHook
from repnext_mm.reparam import fuse
from repnext_mm.reparam.fuse import count_norms
from tests.checkpoints import files
from tests.conftest import randomize, worst_error

pytest.importorskip('mmpretrain')
ARCH = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 2, 1)}


def config(*, deploy=False, classes=10):
    return Config(
        {
            'default_scope': 'mmpretrain',
            'model': {
                'type': 'ImageClassifier',
                'backbone': {'type': 'RepNeXt', 'arch': ARCH, 'out_indices': (3,), 'deploy': deploy},
                'neck': {'type': 'GlobalAveragePooling'},
                'head': {'type': 'RepNeXtClsHead', 'num_classes': classes, 'in_channels': 64, 'deploy': deploy},
            },
        }
    )


def built(**options):
    init_default_scope('mmpretrain')
    model = randomize(MODELS.build(config(**options).model)).eval()
    for parameter in model.head.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture
def source():
    return built()


@pytest.fixture(params=['torchscript', 'torchscript in bare keys', 'ours', 'ours, averaged'])
def fused_file(request, source, tmp_path):
    """The authors' fused file: norms kept, one linear layer for a head; and ours, without norms."""
    path = tmp_path / ('m_fused.pt' if request.param == 'torchscript' else 'm_fused.pth')
    if request.param.startswith('torchscript'):
        kept, _ = fuse(source, form='keep_norms')
        network = files.FusedClassifier(kept.backbone, kept.head.fc).eval()
        if request.param == 'torchscript':
            with torch.no_grad():
                torch.jit.trace(network, torch.randn(1, 3, 64, 64)).save(str(path))
        else:
            torch.save({'model': network.state_dict()}, path)
    else:
        entry = 'model_ema' if 'averaged' in request.param else 'state_dict'
        torch.save({entry: fuse(source)[0].state_dict()}, path)
    return path


IMAGE = torch.randn(2, 3, 65, 97, generator=torch.Generator().manual_seed(0))


def same(model, source):
    with torch.no_grad():
        return worst_error(model(IMAGE, mode='tensor'), source(IMAGE, mode='tensor')) < 1e-5


@pytest.mark.parametrize('deploy', [False, True])
def test_loads_for_testing(deploy, fused_file, source):
    model = build_model(config(deploy=deploy), fused_file, testing=True).eval()
    assert count_norms(model) == 0
    assert same(model, source)


@pytest.mark.parametrize('deploy', [False, True])
@pytest.mark.parametrize('average', [False, True])
def test_the_hook_tests_it(deploy, average, fused_file, source, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    init_default_scope('mmpretrain')
    hooks = [StrictLoadHook(testing=True), *([EMAHook(update_buffers=True)] if average else [])]
    runner = Runner(
        MODELS.build(config(deploy=deploy).model),
        work_dir=str(tmp_path / 'run'),
        load_from=str(fused_file),
        custom_hooks=hooks,
        default_hooks={'checkpoint': None},
        experiment_name='fused',
    )
    runner.logger.addHandler(caplog.handler)
    with reading_safely():
        runner.call_hook('before_run')
        runner.load_or_resume()
    runner.call_hook('before_test_epoch')  # an average is tested where there is one
    assert same(runner.model.eval(), source)
    assert ('is tested in deploy form' in caplog.text) == (not deploy)
    assert f'loaded {len(runner.model.state_dict())}/{len(runner.model.state_dict())} tensors' in caplog.text


def test_only_testing_changes_the_form(fused_file):
    with pytest.raises(ValueError, match='fused network.*branches are gone'):
        build_model(config(), fused_file)


def test_other_classes_are_still_refused(fused_file):
    with pytest.raises(ValueError, match='set num_classes'):
        build_model(config(classes=7), fused_file, testing=True)


def test_the_train_form_stays_what_it_is(source, tmp_path):
    torch.save({'state_dict': source.state_dict()}, tmp_path / 'train.pth')
    model = build_model(config(), tmp_path / 'train.pth', testing=True)
    assert not model.backbone.deploy
    assert same(model.eval(), source)


@pytest.mark.parametrize('ema', [False, True])
def test_averaged_weights_by_one_option(ema, source, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    bare = {key.removeprefix('backbone.'): value for key, value in source.state_dict().items()}
    other = {key: value + 1 for key, value in bare.items()}
    raw, averaged = (other, bare) if ema else (bare, other)
    torch.save({'model': raw, 'model_ema': averaged, 'epoch': 299}, tmp_path / 'checkpoint.pth')
    runner = Runner(
        MODELS.build(config().model),
        work_dir=str(tmp_path / 'run'),
        load_from=str(tmp_path / 'checkpoint.pth'),
        custom_hooks=[StrictLoadHook(ema=ema, testing=True)],
        default_hooks={'checkpoint': None},
        experiment_name='averaged',
    )
    runner.logger.addHandler(caplog.handler)
    with reading_safely():
        runner.load_or_resume()
    assert same(runner.model.eval(), source)
    named = "of 'model_ema' (the file has model too)" if ema else "of 'model' (the file has model_ema, averaged too)"
    assert named in caplog.text


def test_another_network_is_refused_with_ema_too(tmp_path):
    torch.save({'model': nn.Linear(2, 2).state_dict()}, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='no averaged weights'):
        build_model(config(), tmp_path / 'other.pth', ema=True)
    with pytest.raises(ValueError, match='another network'):
        build_model(config(), tmp_path / 'other.pth')
