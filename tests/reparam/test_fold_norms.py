"""Plain layers and their norms are found along the data flow, and only where folding is exact."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from repnext_mm.models.merged_conv import ConvNorm
from repnext_mm.reparam import fuse, relative_error
from repnext_mm.reparam.fuse import count_norms
from tests.conftest import randomize

EXACT = 1e-12


def ready(model: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    return randomize(model).to(dtype).eval()


def checked(model: nn.Module, *size: int, norms: int) -> nn.Module:
    """Fuse a model, compare, and count what is left."""
    before = copy.deepcopy(model.state_dict())
    fused, report = fuse(model)
    assert count_norms(fused) == report.norms_after == norms
    assert max(relative_error(fused, model, torch.randn(2, *size).double())) < EXACT
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before.keys() | after.keys())
    again, second = fuse(fused)
    assert again is fused
    assert not second
    return fused


@pytest.mark.parametrize(
    ('conv', 'norm'),
    [
        (nn.Conv1d(4, 6, 3, 2, 1, groups=2), nn.BatchNorm1d(6)),
        (nn.Conv2d(4, 6, (3, 5), padding='same', dilation=2, bias=False), nn.BatchNorm2d(6)),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode='reflect'), nn.SyncBatchNorm(6)),
        (nn.Conv3d(4, 6, (1, 3, 2), padding=(0, 1, 1)), nn.BatchNorm3d(6, affine=False)),
    ],
    ids=['1d', '2d same', '2d reflect, sync', '3d'],
)
def test_geometries(conv, norm):
    fused = checked(ready(nn.Sequential(conv, norm, nn.ReLU(inplace=True))), 4, *[7] * (conv.weight.dim() - 2), norms=0)
    assert type(fused[0]) is type(conv)
    assert isinstance(fused[1], nn.Identity)
    assert not fused[0].weight.requires_grad


class Shuffled(nn.Module):
    """Registers its norms in an order that says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.second_norm = nn.BatchNorm2d(4)
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.first_norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.second_norm(self.second(self.first_norm(self.first(x))))


def test_the_order_of_registration_does_not_count():
    checked(ready(Shuffled()), 3, 9, 9, norms=0)


class Branches(nn.Module):
    """Where a convolution may not absorb the norm behind it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.norm, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        if self.kind == 'read twice':
            return self.norm(y) + y
        if self.kind == 'sum with the input':
            return self.norm(y + x)
        if self.kind == 'two norms':
            return self.norm(y) + self.second(y)
        if self.kind == 'norm of two':
            return self.norm(y) + self.norm(self.other(x))
        if self.kind == 'conv used again':
            return self.conv(self.norm(y))
        if self.kind == 'weights looked at':
            return self.norm(y) * self.conv.weight.mean()
        if self.kind == 'statistics looked at':
            return self.norm(y) + self.norm.running_mean.mean()
        return self.norm(y), y


@pytest.mark.parametrize(
    'kind',
    [
        'read twice',
        'sum with the input',
        'two norms',
        'norm of two',
        'conv used again',
        'weights looked at',
        'statistics looked at',
        'returned too',
    ],
)
def test_norms_that_must_stay(kind):
    checked(ready(Branches(kind)), 4, 6, 5, norms=2)


class Chosen(nn.Module):
    """Norms only on demand."""

    def __init__(self, default: bool | None) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.default = default

    def forward(self, x, *, skip=None):
        y = self.conv(x)
        return self.norm(y) if skip is None else y


def test_norms_that_an_optional_argument_leaves_out_stay():
    checked(ready(Chosen(None)), 4, 5, 5, norms=1)


def test_a_pair_that_is_called_twice_is_one_pair():
    pair = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    fused = checked(ready(nn.Sequential(pair, nn.ReLU(), pair)), 4, 9, 9, norms=0)
    assert fused[0] is fused[2]


class Untraceable(nn.Module):
    """Its own control flow depends on values, its parts are plain."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x):
        for part in self.parts:
            x = part(x)
            if x.sum() > 1e9:
                break
        return x


def block() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())


def test_the_largest_traceable_parts_are_fused():
    model = ready(Untraceable(block(), Untraceable(block(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), Shuffled4()))
    checked(model, 4, 9, 9, norms=1)  # the last norm of the inner one: nobody can see what it reads


class Shuffled4(Shuffled):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3)


class Around(nn.Module):
    """Traceable, with an untraceable part in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner = Untraceable(block())
        self.last, self.last_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.last_norm(self.last(self.inner(self.norm(self.conv(x)))))


def test_untraceable_parts_do_not_hide_what_is_around_them():
    checked(ready(Around()), 4, 6, 6, norms=0)


def test_a_convolution_that_parts_share_is_left_alone():
    """As in detection heads that share convolutions between levels but not norms."""
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model = Untraceable(nn.Sequential(conv, nn.BatchNorm2d(4)), nn.Sequential(conv, nn.BatchNorm2d(4)))
    checked(ready(model), 4, 5, 5, norms=2)


class OwnForward(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).clamp(-1, 1)


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).clamp(-1, 1)


@pytest.mark.parametrize(
    'layers',
    [
        [OwnForward(3, 4, 3), nn.BatchNorm2d(4)],
        [nn.Conv2d(3, 4, 3), OwnNorm(4)],
        [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)],
        [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)],
    ],
    ids=['own conv', 'own norm', 'no statistics', 'activation between'],
)
def test_layers_that_are_not_plain_are_left_alone(layers):
    checked(ready(nn.Sequential(*layers)), 3, 6, 6, norms=1)


def test_hooks_are_not_folded_away():
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model[0].register_forward_hook(lambda module, args, output: output + 1)
    checked(model, 3, 6, 6, norms=1)


def test_a_forward_of_the_object_is_not_mistaken_for_that_of_the_class():
    model = Shuffled()
    model.forward = lambda x: model.first_norm(model.first(x).relu())
    checked(ready(model), 3, 9, 9, norms=2)


def test_norms_in_training_mode_stay():
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    model[1].train()
    fused, report = fuse(model)
    assert report.modules == ('2',)
    assert fused[1] is model[1]


def test_tracing_leaves_nothing_behind():
    class Caching(nn.Sequential):
        def forward(self, x):
            self.seen = x
            return super().forward(2 * x)

    model = ready(Caching(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    attributes = set(vars(model))
    fused, report = fuse(model)
    assert report.norms_after == 0
    assert set(vars(model)) == set(vars(fused)) == attributes


def test_ours_beside_theirs():
    model = nn.Sequential(ConvNorm(3, 4, 3, norm_cfg={'type': 'BN'}), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    checked(ready(model), 3, 6, 6, norms=0)
    _, report = fuse(ready(model), form='keep_norms')
    assert report.modules == ('0', '1')


def test_wrappers_are_kept():
    model = ready(nn.DataParallel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))))
    fused, report = fuse(model)
    assert isinstance(fused, nn.DataParallel)
    assert report.modules == ('module.0',)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_dtype_and_memory_format_are_kept(dtype):
    model = ready(block(), dtype).to(memory_format=torch.channels_last)
    fused, _ = fuse(model)
    assert {parameter.dtype for parameter in fused.parameters()} == {dtype}
    assert fused[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_walls_inside_walls():
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model = ready(nn.Sequential(nn.DataParallel(nn.DataParallel(inner))))
    _, report = fuse(model)
    assert report.modules == ('0.module.module.0',)


def test_what_collects_on_the_way_stays_clean():
    class Collecting(nn.Sequential):
        def forward(self, x):
            self.seen.append(x)
            return super().forward(x)

    model, hooked = ready(Collecting(block(), block())), []
    model.seen = []
    model[1].register_forward_hook(lambda module, args, output: hooked.append(output))
    fused, report = fuse(model)
    assert report.norms_after == 0
    assert model.seen == hooked == []
    x = torch.randn(1, 4, 5, 5).double()
    fused(x)
    assert len(hooked) == 1


def test_timms_norm_with_an_activation_in_it():
    layers = pytest.importorskip('timm.layers')
    fused = checked(ready(nn.Sequential(nn.Conv2d(3, 4, 3), layers.BatchNormAct2d(4))), 3, 6, 6, norms=0)
    assert isinstance(fused[1][0], nn.ReLU)
    plain = layers.BatchNormAct2d(4, apply_act=False)
    assert isinstance(checked(ready(nn.Sequential(nn.Conv2d(3, 4, 3), plain)), 3, 6, 6, norms=0)[1], nn.Identity)


def test_convolutions_that_pad_as_tensorflow_does():
    for kind in (
        pytest.importorskip('mmcv.cnn.bricks').Conv2dAdaptivePadding,
        pytest.importorskip('timm.layers').Conv2dSame,
    ):
        model = ready(nn.Sequential(kind(3, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4)))
        fused = checked(model, 3, 6, 9, norms=0)
        assert type(fused[0]) is kind
        assert model[0].bias is None
        assert not fused[0].weight.requires_grad


def test_a_graph_module():
    checked(torch.fx.symbolic_trace(ready(nn.Sequential(block(), block()))), 4, 5, 5, norms=0)


def test_parametrized_convolutions_become_plain():
    conv = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    fused = checked(ready(nn.Sequential(conv, nn.BatchNorm2d(4))), 3, 6, 6, norms=0)
    assert type(fused[0]) is nn.Conv2d
