"""What was built agrees before the first step: classes of data, heads and metrics; batches that a norm can take."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, ConcatDataset, DefaultSampler, InfiniteSampler, RepeatDataset
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.utils.data import DataLoader

from repnext_mm import fuse_checked
from repnext_mm.apis import build
from repnext_mm.hooks import SeededSampler
from repnext_mm.models import Classifier


def data(classes, kind=BaseDataset, **metainfo):
    dataset = kind(lazy_init=True, metainfo=metainfo)
    if classes is not None:
        dataset._metainfo['classes'] = classes
    return dataset


class SomeHead(nn.Module):
    def __init__(self, num_classes, **attributes):
        super().__init__()
        self.num_classes = num_classes
        for name, value in attributes.items():
            setattr(self, name, value)


class FusedSemanticHead(SomeHead):
    pass


def model(**parts):
    made = nn.Module()
    for name, part in parts.items():
        made.add_module(name, nn.ModuleList(part) if isinstance(part, list) else part)
    return made


@pytest.mark.parametrize(
    'wrap',
    [
        lambda x: x,
        lambda x: RepeatDataset(x, 2, lazy_init=True),
        lambda x: ConcatDataset([x], lazy_init=True),
    ],
    ids=['bare', 'repeated', 'joined'],
)
def test_classes_as_one_string(wrap):
    with pytest.raises(ValueError, match=r"train_dataloader.*BaseDataset has classes='scar', one string.*\('scar',\)"):
        build.check_same_classes({'train': wrap(data('scar'))}, model())
    assert build.check_same_classes({'train': wrap(data(('scar',)))}, model()) == ('scar',)


def test_data_sets_that_name_other_classes():
    sets = {'train': data(('cat', 'dog')), 'val': data(['cat', 'dog'])}
    assert build.check_same_classes(sets, model()) == ('cat', 'dog')
    assert build.check_same_classes({'train': data(None)}, model()) is None
    sets['val'] = data(('dog', 'cat'))
    with pytest.raises(ValueError, match=r'val_dataloader.*2 classes \(dog, cat\), and that of train.*\(cat, dog\)'):
        build.check_same_classes(sets, model())
    assert build.check_same_classes(sets, model(language_model=nn.Identity()))


def test_a_palette_of_fewer_colors():
    with pytest.raises(ValueError, match='has 2 classes, and 1 colors in its palette'):
        build.check_same_classes({'test': data(('a', 'b'), palette=[(1, 2, 3)])}, model())
    for palette in ([(1, 2, 3)] * 3, 'random'):
        assert build.check_same_classes({'test': data(('a', 'b'), palette=palette)}, model())


@pytest.mark.parametrize(
    ('name', 'make'),
    [
        ('bbox_head', lambda head: model(bbox_head=head)),
        ('roi_head.bbox_head.1', lambda head: model(roi_head=model(bbox_head=[SomeHead(2), head]))),
        ('roi_head.mask_head', lambda head: model(roi_head=model(bbox_head=SomeHead(2), mask_head=head))),
        ('decode_head', lambda head: model(decode_head=head)),
        ('auxiliary_head.0', lambda head: model(decode_head=SomeHead(2), auxiliary_head=[head])),
        ('student.head', lambda head: model(student=model(head=head))),
        ('module.head', lambda head: model(module=model(head=head))),
    ],
)
def test_a_head_of_another_number_of_classes(name, make):
    build.check_heads(make(SomeHead(2)), ('cat', 'dog'))
    with pytest.raises(ValueError, match=rf'num_classes=80 of {name} does not agree with the 2 classes \(cat, dog\)'):
        build.check_heads(make(SomeHead(80)), ('cat', 'dog'))


@pytest.mark.parametrize(
    'other',
    [
        model(rpn_head=SomeHead(1)),
        model(roi_head=model(semantic_head=FusedSemanticHead(183))),
        model(mask_head=SomeHead(80, class_agnostic=True)),
        model(teacher=model(head=SomeHead(5))),
        model(bbox_head=SomeHead(256), language_model=nn.Identity()),
        model(bbox_head=SomeHead(80), panoptic_fusion_head=nn.Identity()),
    ],
    ids=['proposals', 'stuff', 'agnostic', 'teacher', 'words', 'panoptic'],
)
def test_heads_of_other_classes_are_left_alone(other):
    build.check_heads(other, ('cat', 'dog'))


def test_a_metric_of_another_number_of_classes():
    build.check_metrics([SimpleNamespace(num_classes=None), SimpleNamespace(num_classes=2)], ('a', 'b'), stage='val')
    with pytest.raises(ValueError, match='num_classes=3 of SimpleNamespace in val_evaluator .* 2 classes'):
        build.check_metrics([SimpleNamespace(num_classes=3)], ('a', 'b'), stage='val')


CONFIG = Config(dict(model={}, train_dataloader=dict(dataset=dict(pipeline=[dict(type='Resize', scale=64)]))))


def loader(images, size, *, drop_last=False, sampler=DefaultSampler):
    dataset = torch.arange(images)
    return DataLoader(dataset, batch_size=size, drop_last=drop_last, sampler=sampler(dataset))


def seeded(dataset):
    return SeededSampler(dataset, sampler=dict(type='InfiniteSampler'))


@pytest.mark.parametrize(
    ('loaded', 'words'),
    [
        (loader(8, 1), r'batch_size=1 makes batches of one image, and the batch norm head\.head\.norm .* 2 or more'),
        (loader(8, 1, sampler=InfiniteSampler), 'batch_size=1'),
        (loader(8, 7), '8 images per process in batches of 7 leave a last batch of one.*drop_last=True'),
        (loader(8, 7, drop_last=True), None),
        (loader(8, 7, sampler=InfiniteSampler), None),
        (loader(8, 7, sampler=seeded), None),
        (loader(8, 2), None),
    ],
)
def test_a_batch_of_one(loaded, words):
    network = Classifier('m0')
    before = {key: value.clone() for key, value in network.state_dict().items()}
    if words is None:
        build.check_batches(network, loaded, CONFIG)
    else:
        with pytest.raises(ValueError, match=words):
            build.check_batches(network, loaded, CONFIG)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert network.training


class ReturnsNothing(Classifier):
    def train(self, mode=True):
        """As MMDetection's detectors with a teacher inside, and the ResNets of the mm packages."""
        super().train(mode)


def test_models_that_return_nothing_when_their_mode_is_set():
    with pytest.raises(ValueError, match='one value per channel'):
        build.check_batches(ReturnsNothing('m0'), loader(8, 1), CONFIG)
    with MODELS.switch_scope_and_registry('mmengine') as registry:
        registry.register_module(module=ReturnsNothing, force=True)
        built = build.build_model(Config(dict(model=dict(type='ReturnsNothing', arch='m0'))))
    assert isinstance(built, ReturnsNothing)
    assert not built.training


@pytest.mark.filterwarnings('ignore:DeprecationWarning. .num_anchors')
def test_detectors_with_a_teacher_inside():
    pytest.importorskip('mmdet')
    backbone = dict(type='RepNeXt', arch='m0', out_indices=(1, 2, 3))
    neck = dict(type='FPN', in_channels=[80, 160, 320], out_channels=8, num_outs=3)
    head = dict(
        type='GFLHead',
        num_classes=3,
        in_channels=8,
        stacked_convs=1,
        feat_channels=8,
        norm_cfg=dict(type='BN'),
        anchor_generator=dict(
            type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=[8, 16, 32]
        ),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0),
        loss_bbox=dict(type='GIoULoss'),
    )
    detector = dict(
        backbone=backbone,
        neck=neck,
        bbox_head=head,
        test_cfg=dict(nms_pre=9, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=9),
    )
    whole = dict(
        detector,
        type='KnowledgeDistillationSingleStageDetector',
        bbox_head=dict(head, type='LDHead', loss_ld=dict(type='KnowledgeDistillationKLDivLoss', T=10)),
        teacher_config=dict(model=dict(detector, type='GFL')),
    )
    built = build.build_model(Config(dict(model=whole, default_scope='mmdet')))
    assert not built.training
    fused, report = fuse_checked(built)
    assert report.norms_after == 0
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.backbone.modules())


def segmentor(head, **options):
    init_default_scope('mmseg')
    own = dict(in_channels=320, in_index=3, channels=16, num_classes=3, norm_cfg=dict(type='BN'))
    return MODELS.build(
        dict(
            type='EncoderDecoder',
            data_preprocessor=dict(type='SegDataPreProcessor'),
            backbone=dict(type='RepNeXt', arch='m0'),
            decode_head=dict(type=head, **{**own, **options}),
            auxiliary_head=dict(type='FCNHead', **own),
            test_cfg=dict(mode='whole'),
        )
    )


@pytest.mark.parametrize(
    ('head', 'options', 'norm'),
    [
        ('PSPHead', dict(pool_scales=(1, 2)), r'decode_head.psp_modules.0.1.bn'),
        ('ASPPHead', dict(dilations=(1, 2)), r'decode_head.image_pool.1.bn'),
        (
            'UPerHead',
            dict(in_channels=[40, 80, 160, 320], in_index=[0, 1, 2, 3], pool_scales=(1, 2)),
            'decode_head.psp_modules.0.1.bn',
        ),
        ('PSPHead', dict(pool_scales=(1, 2), norm_cfg=dict(type='GN', num_groups=4)), None),
        ('FCNHead', {}, None),
    ],
    ids=['psp', 'aspp', 'uper', 'group norm', 'fcn'],
)
def test_the_norm_of_a_pooled_branch(head, options, norm):
    assert build.norm_of_one_value(segmentor(head, **options), size=(64, 64)) == norm


def test_where_no_norm_sees_one_value():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert build.norm_of_one_value(network, size=(32, 32)) is None

    class Uncopied(nn.Module):
        def __deepcopy__(self, memo):
            raise TypeError('no')

    assert build.norm_of_one_value(nn.Sequential(Uncopied()), size=(32, 32)) is None


@pytest.mark.parametrize(
    ('given', 'size'),
    [
        (dict(data_preprocessor=dict(size=(64, 96))), (64, 96)),
        (dict(scale=32), (32, 32)),
        (dict(crop_size=(48, 40)), (48, 40)),
        (dict(scale=(0.5, 2.0)), (224, 224)),
        ({}, (224, 224)),
    ],
)
def test_the_size_of_training_images(given, size):
    preprocessor = given.pop('data_preprocessor', None)
    dataset = dict(dataset=dict(pipeline=[dict(type='Load'), dict(type='Any', **given), dict(type='Pack')]))
    config = Config(dict(model=dict(data_preprocessor=preprocessor), train_dataloader=dict(dataset=dataset)))
    assert build.training_image_size(config) == size
