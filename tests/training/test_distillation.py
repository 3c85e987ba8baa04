"""Distillation: by-hand losses, and a teacher that is nowhere but in the loss."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner.checkpoint import get_state_dict, load_state_dict
from torch.nn import functional as F

from repnext_mm.errors import UserError
from repnext_mm.reparam import fuse
from repnext_mm.training import distillation_loss

pytest.importorskip('mmpretrain')

TINY = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}
STUDENT = dict(
    type='ImageClassifier',
    backbone=dict(type='RepNeXt', arch=TINY, out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='RepNeXtClsHead', num_classes=4, in_channels=64),
)
TEACHER = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet_CIFAR', depth=18, base_channels=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=4, in_channels=64),
)


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmpretrain')


def build(**options):
    settings = dict(type='DistilledClassifier', student=STUDENT, teacher=TEACHER) | options
    return MODELS.build(copy.deepcopy(settings))


def samples(labels):
    from mmpretrain.structures import DataSample

    return [DataSample().set_gt_label(label) for label in labels]


def test_hard_loss_by_hand():
    scores = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    teacher = torch.tensor([[9.0, 1.0, 0.0], [0.0, 1.0, 5.0]])  # says 0, then 2
    first = -math.log(math.e / (math.e + math.e**2 + 1))
    assert distillation_loss(scores, teacher, kind='hard').item() == pytest.approx((first + math.log(3)) / 2)


def test_soft_loss_by_hand():
    """sum p (log p - log q) over classes and images, times tau^2, over the number of scores."""
    scores, teacher, tau = [[1.0, 2.0, 0.0], [0.5, 0.0, -1.0]], [[3.0, 1.0, 0.0], [0.0, 1.0, 5.0]], 2.0

    def distribution(row):
        powers = [math.exp(value / tau) for value in row]
        return [power / sum(powers) for power in powers]

    total = 0.0
    for row, taught in zip(scores, teacher, strict=True):
        total += sum(p * math.log(p / q) for p, q in zip(distribution(taught), distribution(row), strict=True))
    found = distillation_loss(torch.tensor(scores), torch.tensor(teacher), kind='soft', tau=tau).item()
    assert found == pytest.approx(total * tau**2 / 6, rel=1e-5)


@pytest.mark.parametrize('kind', ['hard', 'soft'])
def test_two_heads_answer_to_labels_and_to_the_teacher(kind):
    model = build(kind=kind, alpha=0.3, tau=2.0)
    images, labels = torch.randn(3, 3, 32, 32), [0, 2, 3]
    losses = model(images, samples(labels), mode='loss')
    pooled = model.student.extract_feat(images)[-1]
    first, second = model.student.head.both(pooled)
    taught = model.teacher(images)
    base = F.cross_entropy(first, torch.tensor(labels))
    torch.testing.assert_close(losses['loss_base'], 0.7 * base)
    expected = 0.3 * distillation_loss(second, taught, kind=kind, tau=2.0)
    torch.testing.assert_close(losses['loss_distillation'], expected)
    total, logged = model.parse_losses(losses)
    torch.testing.assert_close(total, 0.7 * base + expected)
    assert logged['loss'].item() == total.item()


@pytest.mark.parametrize(
    'student',
    [
        TEACHER,
        dict(type='TimmClassifier', model_name='mobilenetv3_small_050', num_classes=4),
    ],
    ids=['mmpretrain', 'timm'],
)
def test_any_student_and_any_teacher(student):
    other = dict(type='TimmClassifier', model_name='mobilenetv3_small_050', num_classes=4)
    model = build(student=student, teacher=other if student is TEACHER else TEACHER)
    losses = model(torch.randn(2, 3, 32, 32), samples([1, 2]), mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


def test_the_teacher_is_frozen_and_in_no_checkpoint():
    model = build()
    teacher = model.teacher.model
    before = copy.deepcopy(teacher.state_dict())
    alone = MODELS.build(copy.deepcopy(STUDENT))
    assert set(model.state_dict()) == set(get_state_dict(model)) == set(alone.state_dict())
    assert {id(p) for p in model.parameters()} == {id(p) for p in model.student.parameters()}
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    total, _ = model.parse_losses(model(torch.randn(2, 3, 32, 32), samples([1, 2]), mode='loss'))
    total.backward()
    optimizer.step()
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert copy.deepcopy(model).teacher is model.teacher
    averaged = ExponentialMovingAverage(model)
    assert {key.removeprefix('module.') for key in averaged.state_dict()} == {*alone.state_dict(), 'steps'}


@pytest.mark.parametrize('load', [torch.nn.Module.load_state_dict, load_state_dict], ids=['torch', 'mmengine'])
def test_weights_travel_between_student_and_wrapper(load):
    model, alone = build(), MODELS.build(copy.deepcopy(STUDENT))
    load(model, alone.state_dict(), strict=True)
    assert torch.equal(model.student.head.head.linear.weight, alone.head.head.linear.weight)
    load(alone, build().state_dict(), strict=True)


def test_tests_as_the_student_and_fuses():
    model = build().eval()
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(images), model.student(images))
    fused, report = fuse(model)
    assert report.norms_after == 0
    assert fused.backbone is fused.student.backbone
    torch.testing.assert_close(fused(images), model(images))
    answers = model(images, samples([0]), mode='predict')
    assert answers[0].pred_score.shape == (4,)


def test_loads_the_teacher_strictly(tmp_path):
    weights = MODELS.build(copy.deepcopy(TEACHER)).state_dict()
    torch.save({'state_dict': weights}, tmp_path / 'teacher.pth')
    model = build(teacher_checkpoint=str(tmp_path / 'teacher.pth'))
    assert all(torch.equal(value, weights[key]) for key, value in model.teacher.model.state_dict().items())
    del weights['head.fc.bias']
    torch.save({'model': weights}, tmp_path / 'cut.pth')
    with pytest.raises(ValueError, match=r'does not fit this teacher ImageClassifier: 1 missing \(head.fc.bias\)'):
        build(teacher_checkpoint=str(tmp_path / 'cut.pth'))
    with pytest.raises(ValueError, match="teacher_checkpoint '.*no.pth' cannot be read"):
        build(teacher_checkpoint=str(tmp_path / 'no.pth'))


def test_a_timm_teacher_in_the_authors_format(tmp_path):
    import timm

    name = 'mobilenetv3_small_050'
    weights = timm.create_model(name, num_classes=4).state_dict()
    torch.save({'model': weights}, tmp_path / 'teacher.pth')
    teacher = dict(type='TimmClassifier', model_name=name, num_classes=4)
    model = build(teacher=teacher, teacher_checkpoint=str(tmp_path / 'teacher.pth'))
    assert all(torch.equal(value, weights[key]) for key, value in model.teacher.model.model.state_dict().items())


@pytest.mark.parametrize('options', [dict(kind='firm'), dict(alpha=1.5), dict(tau=0.0), dict(alpha=float('nan'))])
def test_refuses_what_cannot_be(options):
    with pytest.raises(ValueError, match='alpha lies in'):
        build(**options)


def test_classes_must_agree():
    model = build(teacher={**TEACHER, 'head': {**TEACHER['head'], 'num_classes': 5}})
    with pytest.raises(ValueError, match='both need the same classes'):
        model(torch.randn(2, 3, 32, 32), samples([1, 2]), mode='loss')


def test_a_backbone_is_no_student():
    with pytest.raises(UserError, match="RepNeXt has no classifier's loss"):
        build(student=dict(type='RepNeXt', arch=TINY))
