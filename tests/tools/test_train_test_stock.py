"""The same configs under mmdet's and mmseg's own tools, and a classifier under ours."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.layouts import write_ade20k, write_authors_checkpoint, write_coco
from tests.tools.running import ROOT, metrics, options, run_tool

CLASSIFIER = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['repnext_mm'], allow_failed_imports=False)
custom_hooks = [dict(type='FuseBackboneHook')]
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=2, mean=[124, 116, 104], std=[58, 57, 57]),
    backbone=dict(type='RepNeXt', arch='m0'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=320, loss=dict(type='CrossEntropyLoss')),
)
pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=64), dict(type='PackInputs')]
data_root = 'images'
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='ImageNet', classes=['training', 'validation'], data_root=data_root, pipeline=pipeline),
)
test_dataloader = val_dataloader = train_dataloader
val_evaluator = test_evaluator = dict(type='Accuracy', topk=1)
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=2)
val_cfg = test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
default_hooks = dict(visualization=dict(type='VisualizationHook'))
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
"""


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('foreign')
    write_coco(folder / 'data/coco', train=2, val=1)
    write_ade20k(folder / 'data/ade/ADEChallengeData2016')
    write_authors_checkpoint(folder / 'pretrain/repnext_m0_distill_300e.pth', arch='m0')
    return folder


@pytest.mark.slow
def test_mmdet_s_own_tools(root):
    config = ROOT / 'configs' / 'mask_rcnn_repnext_m0_coco.py'
    tools = Path(find_spec('mmdet').origin).parent / '.mim' / 'tools'
    scales = options(
        train_dataloader__dataset__pipeline__2__scale='(96,96)',
        val_dataloader__dataset__pipeline__1__scale='(96,96)',
        test_dataloader__dataset__pipeline__1__scale='(96,96)',
        train_cfg__max_epochs=1,
    )
    output = run_tool(tools / 'train.py', config, *scales, cwd=root)
    assert 'dropped 14 tensors of head' in output
    checkpoint = root / 'work_dirs' / config.stem / 'epoch_1.pth'
    output = run_tool(tools / 'test.py', config, checkpoint, *scales, cwd=root)
    assert 'norms 53 -> 0' in output


@pytest.mark.slow
def test_mmseg_s_own_tools(root):
    config = ROOT / 'configs' / 'semantic_fpn_repnext_m0_ade20k.py'
    tools = Path(find_spec('mmseg').origin).parent / '.mim' / 'tools'
    scales = options(
        train_dataloader__dataset__pipeline__2__scale='(96,96)',
        train_dataloader__dataset__pipeline__3__crop_size='(64,64)',
        model__data_preprocessor__size='(64,64)',
        test_dataloader__dataset__pipeline__1__scale='(96,96)',
        train_cfg__max_iters=2,
    )
    output = run_tool(tools / 'train.py', config, *scales, cwd=root)
    assert 'dropped 14 tensors of head' in output
    output = run_tool(tools / 'test.py', config, root / 'work_dirs' / config.stem / 'iter_2.pth', *scales, cwd=root)
    assert 'norms 53 -> 0' in output
    assert metrics(output, 'mIoU') >= 0


def test_a_classifier_under_our_tools(root):
    config = root / 'classifier.py'
    config.write_text(CLASSIFIER)
    data = options(data_root=root / 'data/ade/ADEChallengeData2016/images')
    run_tool(ROOT / 'tools/train.py', config, *data, cwd=root)
    output = run_tool(
        ROOT / 'tools/test.py',
        config,
        root / 'work_dirs/classifier/epoch_1.pth',
        *('--show-dir', 'shown', '--out', 'found.pkl'),
        *data,
        cwd=root,
    )
    assert 'norms 53 -> 0' in output
    assert metrics(output, 'accuracy/top1') >= 0
    assert (root / 'found.pkl').is_file()
    assert list((root / 'shown').rglob('*.png')) + list((root / 'shown').rglob('*.jpg'))
