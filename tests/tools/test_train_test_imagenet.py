"""Classification recipes on the layouts of ImageNet and CIFAR-100: their real pipelines; data, batch, length differ."""

import os
import pickle

import numpy as np
import pytest
import torch

from tests.configs.test_classification_recipes import ABLATION, NAMES
from tests.layouts import write_authors_checkpoint, write_imagenet
from tests.tools.running import ROOT, metrics, options, predictions, run_tool

FAST = ['repnext_m0_starnet_distill_imagenet']
TINY_CIFAR = """
from mmpretrain.datasets import CIFAR100

CIFAR100.train_list, CIFAR100.test_list = [('train', None)], [('test', None)]  # not the sums of the published files
"""


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('foreign')
    write_imagenet(folder / 'imagenet')
    write_cifar100(folder / 'cifar100')
    (folder / 'tiny_cifar.py').write_text(TINY_CIFAR)
    return folder


@pytest.fixture(scope='module')
def teacher(root):
    """The teacher's file in DeiT's format, with random weights."""
    import timm

    path = root / 'teacher.pth'
    torch.save({'model': timm.create_model('regnety_160').state_dict()}, path)
    return path


def write_cifar100(root):
    folder = root / 'cifar-100-python'
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for split, count in (('train', 8), ('test', 4)):
        data = generator.integers(0, 255, (count, 3072), dtype=np.uint8)
        content = {'data': data, 'fine_labels': [11 * index for index in range(count)]}
        (folder / split).write_bytes(pickle.dumps(content))
    names = [f'class {index}' for index in range(100)]
    (folder / 'meta').write_bytes(pickle.dumps({'fine_label_names': names}))


def inherited(root, config):
    """The same config, for the files above."""
    path = root / config.name
    path.write_text(f"_base_ = '{config}'\ncustom_imports = dict(imports=['repnext_mm', 'tiny_cifar'])\n")
    return path


def overrides(root, name, teacher):
    """Data root, batch, length; and the teacher's file, which cannot be fetched here."""
    values = dict(
        data_root=root / ('cifar100' if 'cifar' in name else 'imagenet'),
        train_cfg__max_epochs=1,
        **{f'{loader}_dataloader__batch_size': 2 for loader in ('train', 'val', 'test')},
        **{f'{loader}_dataloader__num_workers': 0 for loader in ('train', 'val', 'test')},
    )
    if 'starnet' in name:
        values['param_scheduler__cooldown_epochs'] = 0
    if teacher is not None:
        values['model__teacher_checkpoint'] = teacher
    return options(**values)


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in [*NAMES, *ABLATION]]
)
def test_recipe_trains_and_tests(root, name, request):
    config, environment = ROOT / 'configs' / f'{name}.py', {}
    if 'cifar' in name:
        config = inherited(root, config)
        environment = dict(PYTHONPATH=os.pathsep.join([str(root), os.environ.get('PYTHONPATH', '')]))
    teacher = request.getfixturevalue('teacher') if 'distill' in name else None
    run_tool(
        ROOT / 'tools/train.py', config, '--work-dir', name, *overrides(root, name, teacher), cwd=root, **environment
    )
    checkpoint = root / name / 'epoch_1.pth'
    keys = set(torch.load(checkpoint, weights_only=False)['state_dict'])
    assert {key.split('.')[0] for key in keys} == {'backbone', 'head'}
    settings = overrides(root, name, None)
    output = run_tool(
        ROOT / 'tools/test.py', config, checkpoint, '--work-dir', f'{name}_test', *settings, cwd=root, **environment
    )
    assert 0 <= metrics(output, 'accuracy/top5') <= 100
    assert ('norms' in output and '-> 0' in output) == ('repnext' in name)


def test_the_authors_file_needs_nothing_but_imagenet(root):
    """Both forms say the same; nothing else than the data root is given."""
    write_authors_checkpoint(root / 'repnext_m1_distill_300e.pth', arch='m1')
    found = {}
    for form, flags in (('fused', ()), ('trained', ('--no-fuse',))):
        output = run_tool(
            ROOT / 'tools/test.py',
            ROOT / 'configs/repnext_m1_imagenet.py',
            'repnext_m1_distill_300e.pth',
            *flags,
            '--out',
            root / f'{form}.pkl',
            *options(data_root=root / 'imagenet'),
            cwd=root,
        )
        assert 'loaded 1022/1022 tensors from repnext_m1_distill_300e.pth' in output
        found[form] = predictions(root / f'{form}.pkl')
    assert len(found['fused']) == 4
    for one, other in zip(found['fused'], found['trained'], strict=True):
        torch.testing.assert_close(one['pred_score'], other['pred_score'], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ('name', 'changes', 'message'),
    [
        ('repnext_m1_imagenet', {'data_root': 'nowhere'}, "train data 'nowhere"),
        ('repnext_m0_cifar100', {'data_root': 'nowhere'}, "train data 'nowhere"),
        ('repnext_m1_distill_imagenet', {'model__teacher_checkpoint': 'no.pth'}, "'no.pth' does not exist"),
    ],
)
def test_what_is_missing_is_said_before_training(root, name, changes, message):
    output = run_tool(ROOT / 'tools/train.py', ROOT / 'configs' / f'{name}.py', *options(**changes), cwd=root, expect=1)
    assert output.strip().splitlines()[-1].startswith('error: ')
    assert message in output
