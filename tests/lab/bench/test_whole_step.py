"""Whole training steps: stages that add up, equal losses, other backbones in their place, and what is refused."""

from __future__ import annotations

import re
import time
from functools import partial

import pytest
import torch
from mmengine.config import Config
from mmseg.models import FPN
from torch._dynamo.testing import CompileCounterWithBackend

from repnext_mm.apis.build import build_model
from repnext_mm.errors import UserError
from repnext_mm.lab.bench import whole_step
from repnext_mm.lab.bench.tables import whole_step_tables
from repnext_mm.lab.bench.whole_step import BRANCHES, MERGED, STAGES, measure_whole_step
from repnext_mm.models import RepNeXt
from tests.export.test_parts import SMALL_SEGMENTOR
from tests.tools.running import ROOT

DETECTOR = ROOT / 'configs/mask_rcnn_repnext_m0_digits.py'
SEGMENTOR = ROOT / 'configs/semantic_fpn_repnext_m0_digits.py'
CLASSIFIER = ROOT / 'configs/repnext_m0_digits_cls.py'
QUICK = dict(rounds=2, warmup_rounds=0, warmup_s=0, batches=1)
pytestmark = pytest.mark.filterwarnings('ignore:Default ..avg_non_ignore', 'ignore:.*meshgrid')


@pytest.fixture
def scenes(tmp_path):
    options = {'data_root': str(tmp_path / 'scenes'), 'train_dataloader.batch_size': 2}
    for loader in ('train', 'val', 'test'):
        options[f'{loader}_dataloader.dataset.scenes'] = {'train': 6, 'val': 1, 'size': 128}
    return options


def total_of(way):
    return way.stages['total'].median_ms


def test_detector(scenes):
    rounds = []
    found = measure_whole_step(
        DETECTOR, backbones=(BRANCHES, MERGED), options=scenes, progress=lambda: rounds.append(1), **QUICK
    )
    assert len(rounds) == 2
    assert (found.config, found.batch_shape, found.workers) == ('mask_rcnn_repnext_m0_digits', (2, 3, 128, 128), 0)
    assert found.data.median_ms > 0
    assert 'made between the steps' in whole_step_tables([found])
    branches, merged = found.ways
    assert [way.backbone for way in found.ways] == [BRANCHES, MERGED]
    assert merged.loss == pytest.approx(branches.loss, rel=1e-4)
    assert merged.parameters == branches.parameters
    assert merged.memory_mib < branches.memory_mib
    for way in found.ways:
        assert list(way.stages) == [*STAGES, 'total']
        assert all(latency.n == 2 and latency.median_ms > 0 for latency in way.stages.values())
        # the median of two is their mean, so the stages' medians add up
        assert total_of(way) == pytest.approx(sum(way.stages[stage].median_ms for stage in STAGES))


@pytest.mark.slow
def test_layouts_precisions_and_other_backbones(scenes):
    pytest.importorskip('timm')
    ours = measure_whole_step(
        SEGMENTOR,
        backbones=(MERGED,),
        memory_formats=('contiguous', 'channels_last'),
        dtypes=('float32', 'bfloat16'),
        options=scenes,
        **QUICK,
    )
    settings = [(way.dtype, way.memory_format) for way in ours.ways]
    assert settings == [(d, f) for d in ('float32', 'bfloat16') for f in ('contiguous', 'channels_last')]
    assert [way.loss for way in ours.ways] == pytest.approx([ours.ways[0].loss] * 4, rel=0.05)
    peers = measure_whole_step(SEGMENTOR, backbones=('repvit',), options=scenes, **QUICK)
    assert [way.parameters > 3e6 for way in peers.ways] == [True]


def test_a_classifier_and_its_table(tmp_path):
    options = {'data_root': str(tmp_path / 'digits'), 'train_dataloader.batch_size': 4}
    found = measure_whole_step(CLASSIFIER, backbones=(MERGED, 'resnet50'), cpu_time=True, options=options, **QUICK)
    assert found.clock == 'CPU time'
    text = whole_step_tables([found])
    rows = [line for line in text.splitlines() if line.startswith('| ')]
    assert [row.split()[1] for row in rows[-2:]] == [MERGED, 'resnet50']
    assert 'x first row' in rows[0] and ' 1.00 ' in rows[-2]
    assert 'Data: ' in text and 'is hidden behind the step' in text


@pytest.mark.slow
def test_trained_weights_and_a_compiled_backbone(scenes, tmp_path, monkeypatch):
    counter, options = CompileCounterWithBackend('aot_eager'), scenes | SMALL_SEGMENTOR
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend=counter))
    monkeypatch.setattr(whole_step, 'check_compiler', lambda device_type: None)
    config = Config.fromfile(SEGMENTOR)
    config.merge_from_dict(SMALL_SEGMENTOR)
    state = build_model(config).state_dict()
    state['decode_head.conv_seg.bias'][0] = 20.0  # the background, everywhere
    torch.save({'state_dict': state}, tmp_path / 'trained.pth')
    found = measure_whole_step(
        SEGMENTOR, tmp_path / 'trained.pth', runtimes=('eager', 'compile'), options=options, **QUICK
    )
    assert [(way.runtime, way.backbone) for way in found.ways] == [
        (runtime, backbone) for runtime in ('eager', 'compile') for backbone in (BRANCHES, MERGED)
    ]
    assert [way.loss for way in found.ways] == pytest.approx([found.ways[0].loss] * 4, rel=1e-3)
    assert counter.frame_count == 2, 'steps or backbones were compiled again'
    (initial,) = measure_whole_step(SEGMENTOR, backbones=(MERGED,), options=options, **QUICK).ways
    assert initial.loss != pytest.approx(found.ways[0].loss, rel=0.1)
    text = whole_step_tables([found])
    assert 'trained weights' in text
    assert '| merged | compile | contiguous | float32 ' in re.sub(' +', ' ', text)
    assert all(way.first_step_s > 0 and way.memory_mib > 1 for way in found.ways)


class Slow(torch.autograd.Function):
    """The identity, whose gradient takes 0.3 s."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(0.3)
        return gradient


@pytest.mark.parametrize(
    ('owner', 'stage'),
    [
        pytest.param(RepNeXt, 'backward, backbone', id='backbone'),
        pytest.param(FPN, 'backward, heads', id='neck', marks=pytest.mark.slow),
    ],
)
def test_backward_is_split_where_the_backbone_begins(scenes, monkeypatch, owner, stage):
    original = owner.forward
    monkeypatch.setattr(owner, 'forward', lambda self, x: tuple(Slow.apply(level) for level in original(self, x)))
    (way,) = measure_whole_step(SEGMENTOR, backbones=(MERGED,), options=scenes, **{**QUICK, 'rounds': 1}).ways
    assert way.stages[stage].median_ms > 1200  # four levels
    assert all(time.median_ms < 1200 for name, time in way.stages.items() if name not in (stage, 'total'))


def test_data_that_limits_is_said(scenes):
    found = measure_whole_step(SEGMENTOR, backbones=(MERGED,), options=scenes, **QUICK)
    slow = found.data.__class__(median_ms=1e6, p10_ms=1e6, p90_ms=1e6, n=1)
    found.__dict__['data'] = slow
    assert 'Data: 1000000 ms a batch' in whole_step_tables([found])
    assert 'limits the fastest of these' in whole_step_tables([found])


def test_different_losses_are_not_timed(scenes, monkeypatch):
    monkeypatch.setattr(whole_step, 'TOLERANCE', -1.0)
    with pytest.raises(RuntimeError, match='they may differ by -1e[+]00 of it, nothing was timed'):
        measure_whole_step(SEGMENTOR, backbones=(BRANCHES, MERGED), options=scenes, **QUICK)


@pytest.mark.parametrize(
    ('options', 'text'),
    [
        ({'backbones': ('vgg',)}, "backbone='vgg' is unknown: choose from branches, merged, repvit, resnet50"),
        ({'runtimes': ('onnxruntime',)}, "runtime='onnxruntime' is unknown: choose from eager, compile"),
        ({'backbones': (MERGED, 'resnet50'), 'checkpoint': 'a.pth'}, "backbone='resnet50': the weights of 'a.pth' are"),
        ({'dtypes': ('int8',)}, "dtype='int8' is unknown: choose from float32, bfloat16"),
        ({'memory_formats': ('nhwc',)}, "memory_format='nhwc' is unknown: choose from"),
        ({'rounds': 0}, 'rounds=0, batches=1: measure at least one of each'),
    ],
    ids=['backbone', 'runtime', 'backbone of other weights', 'dtype', 'memory format', 'rounds'],
)
def test_refused(scenes, options, text):
    with pytest.raises(UserError, match=text):
        measure_whole_step(SEGMENTOR, options=scenes, **{**QUICK, **options})


def test_a_model_without_backbone(tmp_path):
    config = Config.fromfile(SEGMENTOR)
    config.model = dict(type='mmseg.SegDataPreProcessor')
    config.dump(tmp_path / 'config.py')
    with pytest.raises(UserError, match='has no model.backbone: give a detector, a segmentor or a classifier'):
        measure_whole_step(tmp_path / 'config.py', **QUICK)
