"""Inspecting, converting, fusing and comparing weight files; the round trip of every variant and task."""

from __future__ import annotations

import argparse
import os

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from repnext_mm import RepNeXt
from repnext_mm.apis.checkpoint import (
    compare_files,
    compare_outputs,
    convert_file,
    fuse_file,
    inspect_file,
    load_model,
)  # fmt: skip
from repnext_mm.checkpoints import load_strictly, read_checkpoint, write_checkpoint
from repnext_mm.models import ARCHITECTURES
from repnext_mm.reparam import count_norms, fuse
from tests.checkpoints import files
from tests.configs import CONFIGS
from tests.conftest import randomise, worst_error

IMAGE = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('arch', ARCHITECTURES)
def test_round_trip_of_every_backbone(arch, tmp_path):
    """Train form -> fuse -> save -> build with deploy=True -> load strictly -> same outputs."""
    model = randomise(RepNeXt(arch)).eval()
    fused, _ = fuse(model.double())
    path = write_checkpoint(tmp_path / 'fused.pth', fused.state_dict())
    deploy = RepNeXt(arch, deploy=True).double().eval()
    report = load_strictly(deploy, read_checkpoint(path)['state_dict'], source=str(path))
    assert report.loaded == report.expected == len(deploy.state_dict())
    image = IMAGE[..., :33, :47]
    exact = model(image.double())
    assert max(worst_error(a, b) for a, b in zip(deploy(image.double()), exact, strict=True)) < 1e-12
    single = [feature.double() for feature in deploy.float()(image)]
    assert max(worst_error(a, b) for a, b in zip(single, exact, strict=True)) < 1e-5


CLASSIFIER = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['repnext_mm'], allow_failed_imports=False)
custom_hooks = [dict(type='FuseBackboneHook')]
model = dict(
    type='ImageClassifier',
    backbone=dict(type='RepNeXt', arch='m0', out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='RepNeXtClsHead', num_classes=10, in_channels=320))
"""
BACKBONE = "model = dict(type='RepNeXt', arch='m0')\n"


@pytest.fixture(params=['detector', 'segmentor', 'classifier', 'backbone'])
def task(request, tmp_path):
    """A config of each task, and a checkpoint of its train form."""
    path = {
        'detector': CONFIGS / 'mask_rcnn_repnext_m0_coco.py',
        'segmentor': CONFIGS / 'semantic_fpn_repnext_m0_ade20k.py',
    }.get(request.param, tmp_path / 'my_config.py')
    if request.param == 'classifier':
        pytest.importorskip('mmpretrain')
        path.write_text(CLASSIFIER)
    if request.param == 'backbone':
        path.write_text(BACKBONE)
    config = Config.fromfile(path)
    init_default_scope(config.get('default_scope', 'mmengine'))
    settings = config.model
    settings.get('backbone', settings).pop('init_cfg', None)
    model = randomise(MODELS.build(settings)).eval()
    meta = {'dataset_meta': {'classes': ('a', 'b')}}
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, tmp_path / 'm.pth')
    return path, tmp_path / 'm.pth', model


def test_round_trip_of_every_task(task, tmp_path):
    config, weights, model = task
    written = fuse_file(weights, config, tmp_path / 'fused.pth')
    assert max(written.errors) < 1e-12
    assert (written.report.norms_before, written.report.norms_after) == (
        count_norms(model), 0 if hasattr(model, 'head') else count_norms(model) - 53,
    )  # fmt: skip
    deploy_config = Config.fromfile(written.config)
    again = load_model(deploy_config, written.weights).eval()
    backbones = [getattr(network, 'backbone', network) for network in (again, model)]
    assert count_norms(backbones[0]) == 0
    with torch.no_grad():
        pairs = zip(backbones[0](IMAGE), backbones[1](IMAGE), strict=True)
        assert max(worst_error(a, b) for a, b in pairs) < 1e-5
    whole = type(model).__name__ == 'ImageClassifier'  # its two heads become one layer
    if whole:
        scores = [network(IMAGE, mode='tensor') for network in (again, model)]
        assert worst_error(*scores) < 1e-5
    parts = {} if whole or not hasattr(model, 'backbone') else model.state_dict()
    untouched = {key: value for key, value in parts.items() if 'backbone.' not in key}
    assert all(torch.equal(again.state_dict()[key], value) for key, value in untouched.items())
    assert not [hook for hook in deploy_config.get('custom_hooks', []) if hook.type == 'FuseBackboneHook']
    assert torch.load(written.weights, weights_only=True)['meta']['dataset_meta'] == {'classes': ['a', 'b']}
    assert max(compare_outputs(weights, config, written.weights, written.config)) < 1e-5


def test_fusing_a_fused_file_says_so(tmp_path):
    (tmp_path / 'deploy.py').write_text("model = dict(type='RepNeXt', arch='m0', deploy=True)\n")
    write_checkpoint(tmp_path / 'fused.pth', RepNeXt('m0').switch_to_deploy().state_dict())
    with pytest.raises(ValueError, match='nothing to fuse'):
        fuse_file(tmp_path / 'fused.pth', tmp_path / 'deploy.py', tmp_path / 'out.pth')
    assert not (tmp_path / 'out.pth').exists()


def test_inspect(tmp_path, golden_state):
    found = inspect_file(files.timm_saver(tmp_path / 'm0.pth.tar', files.typed(golden_state)))
    assert (found.kind, found.unsafe, found.writer, found.averaged) == ('torch.save', [], "timm's saver", True)
    assert (found.weights.task, found.weights.arch, found.weights.form) == ('classifier', 'm0', 'train')
    assert found.tensors == 671
    counters = sum(key.endswith('num_batches_tracked') for key in golden_state)
    assert found.dtypes == {'float32': 671 - counters, 'int64': counters}


class Planted:
    def __reduce__(self):
        return os.system, ('true',)


def test_inspect_names_what_is_unsafe_and_reads_no_further(tmp_path):
    torch.save({'model': {'stem.weight': torch.ones(1)}, 'args': Planted()}, tmp_path / 'bad.pth')
    found = inspect_file(tmp_path / 'bad.pth')
    assert found.unsafe == [f'{os.system.__module__}.system']
    assert found.weights is None
    with pytest.raises(FileNotFoundError, match='no weight file at'):
        inspect_file(tmp_path / 'nowhere.pth')
    (tmp_path / 'page.pth').write_text('<html>')
    with pytest.raises(ValueError, match='is not a weight file|was not read'):
        inspect_file(tmp_path / 'page.pth')


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_convert(suffix, tmp_path, golden_state):
    source = files.authors_training(tmp_path / 'own.pth', files.typed(golden_state))
    out = convert_file(source, tmp_path / f'plain{suffix}')
    compared = compare_files(source, out)
    assert (compared.equal, compared.differences, compared.only_first, compared.only_second) == (671, {}, (), ())
    if suffix == '.pth':
        assert set(torch.load(out, weights_only=True)) == {'state_dict', 'meta'}


def test_convert_of_an_untrusted_file_needs_trust(tmp_path):
    torch.save({'model': {'w': torch.ones(1)}, 'args': Planted()}, tmp_path / 'bad.pth')
    with pytest.raises(ValueError, match='--trust-pickle'):
        convert_file(tmp_path / 'bad.pth', tmp_path / 'out.pth')
    assert not (tmp_path / 'out.pth').exists()
    convert_file(tmp_path / 'bad.pth', tmp_path / 'out.pth', trust_pickle=True)
    assert torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']['w'] == 1


def test_compare(tmp_path):
    first = {'a': torch.ones(2), 'b': torch.ones(2), 'c': torch.ones(2), 'd': torch.ones(1)}
    second = {'a': torch.ones(2), 'b': torch.tensor([1.0, 1.5]), 'c': torch.ones(3), 'e': torch.ones(1)}
    paths = [write_checkpoint(tmp_path / f'{i}.pth', state) for i, state in enumerate((first, second))]
    found = compare_files(*paths)
    assert (found.equal, found.differences, found.other_shape) == (1, {'b': 0.5}, ('c',))
    assert (found.only_first, found.only_second) == (('d',), ('e',))


def test_arguments_of_ones_own_training_are_kept_out(tmp_path, golden_state):
    source = files.authors_training(tmp_path / 'own.pth', files.typed(golden_state))
    assert isinstance(read_checkpoint(source)['args'], argparse.Namespace)
    assert 'args' not in torch.load(convert_file(source, tmp_path / 'plain.pth'), weights_only=True)
