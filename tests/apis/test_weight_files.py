"""Inspecting, converting, fusing and comparing weight files; the round trip of every variant and task."""

from __future__ import annotations

import argparse
import io
import os

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from safetensors import safe_open

from repnext_mm import RepNeXt
from repnext_mm.apis.config import classes_in_checkpoint
from repnext_mm.apis.weight_files import (
    build_model,
    compare_files,
    compare_outputs,
    convert_file,
    fuse_file,
    inspect_file,
)
from repnext_mm.checkpoints import is_whole_file, load_strictly, read_checkpoint, write_checkpoint
from repnext_mm.checkpoints.write import plain_metadata
from repnext_mm.models import ARCHITECTURES
from repnext_mm.reparam import fuse
from repnext_mm.reparam.fuse import count_norms
from tests.checkpoints import files
from tests.configs import CONFIGS
from tests.conftest import fast, randomize, worst_error

IMAGE = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('arch', fast(ARCHITECTURES, 'm0', 'm0e'))
def test_round_trip_of_every_backbone(arch, tmp_path):
    """Train form -> fuse -> save -> build with deploy=True -> load strictly -> same outputs."""
    model = randomize(RepNeXt(arch)).eval()
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
    model = randomize(MODELS.build(settings)).eval()
    meta = {'dataset_meta': {'classes': ('a', 'b')}}
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, tmp_path / 'm.pth')
    return path, tmp_path / 'm.pth', model


def test_round_trip_of_every_task(task, tmp_path):
    config, weights, model = task
    written = fuse_file(weights, config, tmp_path / 'fused.pth')
    assert max(written.errors) < 1e-12
    assert (written.report.norms_before, written.report.norms_after) == (
        count_norms(model),
        0 if hasattr(model, 'head') else count_norms(model) - 53,
    )
    deploy_config = Config.fromfile(written.config)
    again = build_model(deploy_config, written.weights).eval()
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
    assert read_checkpoint(out)['meta'] == {'task': 'classifier', 'arch': 'm0', 'form': 'train'}
    if suffix == '.pth':
        assert set(torch.load(out, weights_only=True)) == {'state_dict', 'meta'}
    else:  # what other programs see
        with safe_open(out, framework='pt') as file:
            assert {'format': 'pt', 'arch': 'm0', 'form': 'train'}.items() <= file.metadata().items()


def test_classes_survive_safetensors_and_back(tmp_path, golden_state):
    source = files.old_detector(tmp_path / 'old.pth', files.typed(golden_state), {})
    there = convert_file(source, tmp_path / 'new.safetensors')
    back = convert_file(there, tmp_path / 'back.pth')
    for path in (there, back):
        assert classes_in_checkpoint(read_checkpoint(path))['classes'] == ['person', 'bicycle']
    assert (compared := compare_files(source, back)).equal == max(compared.tensors)
    assert is_whole_file(there)
    there.write_bytes(there.read_bytes()[:-1])
    assert not is_whole_file(there)


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


def test_the_raw_or_the_averaged_weights_are_converted(tmp_path):
    raw, averaged = {'w': torch.zeros(2)}, {'w': torch.ones(2)}
    torch.save({'model': raw, 'model_ema': averaged}, tmp_path / 'both.pth')
    for options, expected in (({}, 0), ({'ema': True}, 1), ({'prefix': 'model_ema'}, 1), ({'prefix': 'model.'}, 0)):
        written = convert_file(tmp_path / 'both.pth', tmp_path / 'out.pth', **options)
        assert torch.load(written, weights_only=True)['state_dict']['w'][0] == expected
    torch.save({'student': raw, 'teacher': averaged}, tmp_path / 'two.pth')
    with pytest.raises(ValueError, match='student, teacher all hold weights: choose one with prefix='):
        convert_file(tmp_path / 'two.pth', tmp_path / 'out.pth')
    assert inspect_file(tmp_path / 'two.pth').networks == ('student', 'teacher')


@pytest.mark.parametrize('wrap', [lambda m: m, lambda m: {'ema': m, 'epoch': 1}], ids=['alone', 'in a dict'])
def test_a_whole_module_is_converted_with_trust_only(wrap, tmp_path):
    model = RepNeXt('m0')
    torch.save(wrap(model), tmp_path / 'module.pth')
    with pytest.raises(ValueError, match='--trust-pickle'):
        convert_file(tmp_path / 'module.pth', tmp_path / 'out.pth')
    written = convert_file(tmp_path / 'module.pth', tmp_path / 'out.pth', trust_pickle=True)
    state = torch.load(written, weights_only=True)['state_dict']
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def _quantized(values):
    return torch.quantize_per_tensor(torch.tensor(values), 0.5, 0, torch.qint8)


COMPARED = {
    'complex': (torch.tensor([1 + 1j]), torch.tensor([1 + 3j]), 2.0),
    'conjugate': (torch.tensor([1 + 1j]), torch.tensor([1 + 1j]).conj(), 2.0),
    'big integers': (torch.tensor([2**53]), torch.tensor([2**53 + 1]), 1.0),
    'ends of int64': (torch.tensor([-(2**63)]), torch.tensor([2**63 - 1]), 2.0**64),
    'bool': (torch.tensor([True]), torch.tensor([False]), 1.0),
    'uint8': (torch.tensor([0], dtype=torch.uint8), torch.tensor([255], dtype=torch.uint8), 255.0),
    'float16': (torch.tensor([1.0]).half(), torch.tensor([1.5]).half(), 0.5),
    'bfloat16': (torch.tensor([1.0]).bfloat16(), torch.tensor([1.5]).bfloat16(), 0.5),
    'float8': (torch.tensor([1.0]).to(torch.float8_e4m3fn), torch.tensor([1.5]).to(torch.float8_e4m3fn), 0.5),
    'quantized': (_quantized([1.0]), _quantized([2.5]), 1.5),
    'NaN in one': (torch.tensor([1.0]), torch.tensor([float('nan')]), float('inf')),
    'NaN in both': (torch.tensor([float('nan'), 1.0]), torch.tensor([float('nan'), 1.0]), 0.0),
    'infinite in both': (torch.tensor([float('inf')]), torch.tensor([float('inf')]), 0.0),
    'signs of infinity': (torch.tensor([float('inf')]), torch.tensor([-float('inf')]), float('inf')),
    'float and double': (torch.tensor([0.1]), torch.tensor([0.1]).double(), 0.0),
    'integer and float': (torch.tensor([2]), torch.tensor([2.5]), 0.5),
    'empty': (torch.zeros(0, 3), torch.zeros(0, 3), 0.0),
}


def torch_writes(value):
    try:
        torch.save(value, io.BytesIO())
    except KeyError:  # PyTorch 2.1 has types that it does not write
        return False
    return True


@pytest.mark.parametrize('name', COMPARED)
def test_every_dtype_is_compared_honestly(name, tmp_path):
    first, second, expected = COMPARED[name]
    if not torch_writes(first):
        pytest.skip(f'this torch does not write {first.dtype}')
    for index, value in enumerate((first, second)):
        torch.save({'state_dict': {'w': value, 'other': torch.ones(1)}}, tmp_path / f'{index}.pth')
    a, b = tmp_path / '0.pth', tmp_path / '1.pth'
    found = compare_files(a, b, trust_pickle=True)  # what a reader takes is not the question here
    assert found.differences == ({'w': expected} if expected else {})
    assert found.equal == (1 if expected else 2)
    assert found.other_dtype == (('w',) if first.dtype != second.dtype else ())
    assert found.tensors == (2, 2)
    converted = convert_file(a, tmp_path / 'out.pth', trust_pickle=True)
    same = compare_files(a, converted, trust_pickle=True)
    assert (same.equal, same.differences, same.other_dtype) == (2, {}, ())


def test_a_type_without_arithmetic_is_compared_by_its_bytes(tmp_path):
    names = [name for name in ('bits8', 'float8_e8m0fnu', 'uint16', 'uint64') if hasattr(torch, name)]
    names = [name for name in names if torch_writes(torch.zeros(8, dtype=torch.uint8).view(getattr(torch, name)))]
    if not names:
        pytest.skip('this torch writes none of them')
    for name in names:
        dtype = getattr(torch, name)
        values = [torch.tensor([number], dtype=torch.uint8).repeat(dtype.itemsize).view(dtype) for number in (1, 2)]
        for index, value in enumerate(values):
            torch.save({'state_dict': {'w': value}}, tmp_path / f'{index}.pth')
        found = compare_files(tmp_path / '0.pth', tmp_path / '1.pth', trust_pickle=True)
        assert found.equal == 0, name
        assert compare_files(tmp_path / '0.pth', tmp_path / '0.pth', trust_pickle=True).equal == 1, name


def test_metadata_of_any_size_is_written_or_named(tmp_path):
    meta = {'dataset_meta': {'classes': ['a'], 'big': np.zeros((10**6,)), 'empty': np.zeros((2**40, 0))}}
    assert plain_metadata(meta)['dataset_meta'] == {'classes': ['a'], 'big': 'ndarray', 'empty': 'ndarray'}


@pytest.mark.parametrize(
    ('suffix', 'value'),
    [
        ('.safetensors', _quantized([1.0])),
        ('.safetensors', torch.zeros(1, dtype=torch.bits8)),
        ('.pth', torch.zeros(1, dtype=torch.uint8).view(getattr(torch, 'int4', torch.bits4x2))),
    ],
    ids=['quantized', 'bits', 'int4'],
)
def test_a_type_that_a_format_does_not_hold_is_named(suffix, value, tmp_path):
    with pytest.raises(ValueError, match=f'w is {value.dtype}, which cannot be written to a {suffix} file'):
        write_checkpoint(tmp_path / f'out{suffix}', {'w': value})
    assert not list(tmp_path.iterdir())
