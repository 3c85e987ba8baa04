"""`load_from`, `--resume` and tests are all or nothing, and read every kind of whole-model file."""

from __future__ import annotations

import itertools

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner
from torch import nn

from repnext_mm import RepNeXt
from repnext_mm.apis import safe_loading
from repnext_mm.apis.safe_loading import reading_safely, resolved
from repnext_mm.checkpoints import WeightsError
from repnext_mm.hooks import StrictLoadHook

TINY = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}


class Model(BaseModel):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.backbone = RepNeXt(TINY)
        self.head = nn.Linear(64, classes)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return inputs


@pytest.fixture
def load(tmp_path, request):
    names = (f'{request.node.name}-{index}' for index in itertools.count())

    def run(path, model: nn.Module, *, hook: StrictLoadHook | None = None, resume: bool = False, **options) -> None:
        runner = Runner(
            model,
            work_dir=str(tmp_path / 'run'),
            load_from=str(path),
            resume=resume,
            custom_hooks=[hook or StrictLoadHook()],
            experiment_name=next(names),
            optim_wrapper=None,
            default_hooks={'checkpoint': None},
        )
        with reading_safely(**options):
            runner.load_or_resume()

    return run


@pytest.mark.parametrize(
    'wrap',
    [
        lambda s: {'state_dict': s, 'meta': {}},
        lambda s: {'model': s},
        lambda s: s,
        lambda s: {'state_dict': {f'module.{key}': value for key, value in s.items()}},
    ],
    ids=['mmengine', 'model', 'bare', 'data parallel'],
)
def test_every_wrapping_loads_completely(wrap, load, tmp_path):
    source, target = Model(), Model()
    torch.save(wrap(source.state_dict()), tmp_path / 'w.pth')
    load(tmp_path / 'w.pth', target)
    ours, theirs = target.state_dict(), source.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: s.pop('backbone.stem.stem.0.conv.weight'), '1 missing'),
        (lambda s: s.update(extra=torch.ones(1)), r'1 unexpected \(extra\)'),
        (
            lambda s: s.update({'head.weight': torch.ones(5, 64)}),
            r'head.weight has shape \(5, 64\), the model \(3, 64\)',
        ),
    ],
    ids=['missing', 'unexpected', 'shape'],
)
def test_what_does_not_fit_changes_nothing(change, message, load, tmp_path):
    state = dict(Model().state_dict())
    change(state)
    torch.save({'state_dict': state}, tmp_path / 'w.pth')
    model = Model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load(tmp_path / 'w.pth', model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ('rest', 'lacking'),
    [
        ({}, 'meta.epoch and meta.iter and message_hub'),
        ({'meta': {'epoch': 12, 'iter': 9, 'mmdet_version': '2.28.2'}, 'optimizer': {}}, 'message_hub'),
        ({'meta': 1, 'message_hub': {}}, 'meta.epoch and meta.iter'),
    ],
    ids=['weights alone', 'mmdet 2', 'no dict'],
)
def test_only_a_training_of_mmengine_is_gone_on_with(rest, lacking, load, tmp_path):
    torch.save({'state_dict': Model().state_dict(), **rest}, tmp_path / 'w.pth')
    load(tmp_path / 'w.pth', Model())
    sentence = f'no training of mmengine to go on from .--resume., it lacks {lacking}: start from its weights'
    with pytest.raises(WeightsError, match=sentence):
        load(tmp_path / 'w.pth', Model(), resume=True)


def test_reset_starts_a_head_anew(load, tmp_path):
    torch.save({'state_dict': Model(classes=5).state_dict()}, tmp_path / 'w.pth')
    model = Model(classes=3)
    load(tmp_path / 'w.pth', model, hook=StrictLoadHook(reset=['head']))
    stem = 'backbone.stem.stem.0.conv.weight'
    assert torch.equal(model.state_dict()[stem], torch.load(tmp_path / 'w.pth')['state_dict'][stem])


def test_fused_weights_are_refused_by_the_train_form(load, tmp_path):
    fused = Model()
    fused.backbone.switch_to_deploy()
    torch.save({'state_dict': fused.state_dict()}, tmp_path / 'w.pth')
    with pytest.raises(ValueError, match='build the backbone with deploy=True'):
        load(tmp_path / 'w.pth', Model())


class Planted:
    executed = False

    def __reduce__(self):
        return Planted.run, ()

    @staticmethod
    def run() -> None:
        Planted.executed = True


def test_mmengines_fallback_to_pickle_is_shut(load, tmp_path):
    torch.save({'state_dict': Model().state_dict(), 'extra': Planted()}, tmp_path / 'w.pth')
    with pytest.raises(ValueError, match='could run code'):
        load(tmp_path / 'w.pth', Model())
    assert not Planted.executed
    load(tmp_path / 'w.pth', Model(), trust_pickle=True)
    assert Planted.executed


@pytest.mark.parametrize('address', ['torchvision://net', 'modelzoo://net', 'openmmlab://net', 'mmcls://net'])
def test_mmengines_named_addresses_are_read_as_safely(address, tmp_path, monkeypatch):
    scheme = address.partition('://')[0]
    monkeypatch.setitem(safe_loading._ADDRESS_BOOKS, scheme, lambda: {'net': str(tmp_path / 'net.pth')})
    torch.save({'state_dict': {'backbone.w': torch.ones(1)}}, tmp_path / 'net.pth')
    with reading_safely():
        loaded = CheckpointLoader.load_checkpoint(address)
        torch.save({'state_dict': {'w': torch.ones(1)}, 'extra': Planted()}, tmp_path / 'net.pth')
        Planted.executed = False
        with pytest.raises(ValueError, match='could run code'):
            CheckpointLoader.load_checkpoint(address)
    assert list(loaded['state_dict']) == ['w' if scheme == 'mmcls' else 'backbone.w']
    assert not Planted.executed


@pytest.mark.parametrize(
    ('address', 'message'),
    [
        ('s3://bucket/net.pth', 'download it'),
        ('pavi://net', 'download it'),
        ('torchvision://nothing', 'in no list'),
    ],
)
def test_addresses_that_cannot_be_read_safely(address, message):
    with reading_safely(), pytest.raises(ValueError, match=message):
        CheckpointLoader.load_checkpoint(address)


def test_mmengines_lists_hold_addresses():
    assert resolved('torchvision://resnet50').startswith('https://')
    assert resolved('openmmlab://resnet50_caffe').startswith('http')
    assert resolved('open-mmlab://resnet50_caffe') == resolved('openmmlab://resnet50_caffe')


def test_mmengines_loader_comes_back():
    before = dict(CheckpointLoader._schemes)
    with reading_safely():
        assert CheckpointLoader._schemes[''] is not before['']
    assert CheckpointLoader._schemes == before
