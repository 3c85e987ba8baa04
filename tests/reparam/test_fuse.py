"""Fusing never changes its argument, says what it did, and refuses what it would get wrong."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from repnext_mm.models.merged_conv import ConvNorm
from repnext_mm.reparam import FusionReport, fuse
from tests.conftest import randomize, worst_error


def network(norm_cfg: dict | None = None) -> nn.Sequential:
    cfg = norm_cfg or {'type': 'BN'}
    parts = [ConvNorm(3, 8, 3, stride=2, norm_cfg=cfg), nn.GELU(), ConvNorm(8, 4, 1, norm_cfg=cfg)]
    return randomize(nn.Sequential(nn.Sequential(*parts), nn.Conv2d(4, 2, 1)).eval())


def snapshot(model: nn.Module) -> tuple:
    state = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    return state, flags, [parameter.requires_grad for parameter in model.parameters()], repr(model)


def test_the_source_is_untouched_and_the_rest_is_shared():
    model = network()
    before = snapshot(model)
    fused, report = fuse(model)
    after = snapshot(model)
    assert all(torch.equal(before[0][key], value) for key, value in after[0].items())
    assert before[1:] == after[1:]
    assert fused is not model
    assert fused[1] is model[1]
    assert fused[0][1] is model[0][1]
    # convolutions 216 + 32 weights, norms 16 + 8, the head 10; fused: biases 8 + 4 instead of the norms
    assert report == FusionReport('default', ('0.0', '0.2'), 282, 270, 2, 0)


def test_a_copy_shares_nothing():
    model = network()
    fused, _ = fuse(model, copy=True)
    ours = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert ours.isdisjoint(tensor.data_ptr() for tensor in fused.state_dict().values())


def test_fused_parameters_share_no_memory_with_the_branches():
    model = network()
    fused, _ = fuse(model)
    with torch.no_grad():
        fused[0][0].weight.zero_()
    assert model[0][0].conv.weight.abs().min() > 0


def test_fusing_twice_does_nothing_more():
    fused, _ = fuse(network())
    again, report = fuse(fused)
    assert again is fused
    assert not report


def test_created_parameters_need_no_gradient():
    model = network()
    fused, _ = fuse(model)
    assert not any(parameter.requires_grad for parameter in fused[0].parameters())
    assert all(parameter.requires_grad for parameter in fused[1].parameters())


def test_norms_in_training_mode_are_refused_by_name():
    model = network()
    model[0][2].norm.train()
    with pytest.raises(ValueError, match=r'0\.2\.norm is in training mode.*model\.eval\(\)'):
        fuse(model)


def test_unknown_form():
    with pytest.raises(ValueError, match="unknown form 'fast'"):
        fuse(network(), form='fast')


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtype_is_kept(dtype):
    fused, _ = fuse(network().to(dtype))
    assert {parameter.dtype for parameter in fused.parameters()} == {dtype}


def test_memory_format_is_kept():
    fused, _ = fuse(network().to(memory_format=torch.channels_last))
    assert fused[0][0].weight.is_contiguous(memory_format=torch.channels_last)
    plain, _ = fuse(network())
    assert plain[0][0].weight.is_contiguous()


def test_kernels_are_computed_in_float64():
    """A float32 model is as good as a float64 one that is rounded once at the end."""
    model = network()
    fused, _ = fuse(model)
    reference, _ = fuse(copy.deepcopy(model).double())
    assert torch.equal(fused[0][0].weight, reference[0][0].weight.float())


def test_a_module_used_twice_stays_one_module():
    conv = ConvNorm(4, 4, 1, norm_cfg={'type': 'BN'})
    model = randomize(nn.Sequential(conv, nn.GELU(), conv).eval())
    fused, report = fuse(model)
    assert fused[0] is fused[2]
    assert report.modules == ('0',)


def test_norms_that_do_not_fold_are_kept():
    model = randomize(nn.Sequential(ConvNorm(3, 4, 1, norm_cfg={'type': 'BN', 'track_running_stats': False}))).eval()
    fused, report = fuse(model)
    assert fused is model
    assert not report


def test_a_fusible_model_is_replaced_as_a_whole():
    conv, x = randomize(ConvNorm(3, 4, 3, norm_cfg={'type': 'BN'})).eval().double(), torch.randn(1, 3, 5, 7).double()
    fused, report = fuse(conv)
    assert isinstance(fused, nn.Conv2d)
    assert worst_error(fused(x), conv(x)) < 1e-13
    assert str(report) == 'fused 1 modules: parameters 116 -> 112, norms 1 -> 0'


def test_hooks_of_a_copied_module_stay_its_own():
    model = network()
    fused, _ = fuse(model)
    fused.register_forward_hook(lambda *_: None)
    assert not model._forward_hooks


def test_forms_of_parts():
    model = network()
    _, report = fuse(model, form={'0': 'keep_norms', '0.2': 'default'})
    assert report.form == {'0': 'keep_norms', '0.2': 'default'}
    assert report.norms_after == 0


@pytest.mark.parametrize(
    ('form', 'message'),
    [
        ('smallest', "unknown form 'smallest': choose one of default"),
        ({'0': 'smallest'}, "unknown form 'smallest'"),
        ({'stages.0': 'half'}, 'form names stages.0, which Sequential does not have'),
    ],
    ids=['name', 'in a mapping', 'no such module'],
)
def test_forms_that_are_none(form, message):
    with pytest.raises(ValueError, match=message):
        fuse(network(), form=form)


@pytest.mark.parametrize('place', ['on it', 'inside'])
def test_a_fusible_module_with_hooks_stays_and_is_named(place):
    model, seen = network(), []
    module = model[0][0] if place == 'on it' else model[0][0].conv
    module.register_forward_hook(lambda _, args, output: seen.append(1) or 2 * output)
    fused, report = fuse(model)
    assert fused[0][0] is model[0][0]
    assert report.modules == ('0.2',)
    (reason,) = report.refused
    assert reason.startswith('0.0: ' if place == 'on it' else '0.0.conv: ')
    assert 'hooks' in reason
    assert str(report).endswith('norms 2 -> 1, refused 1')
    x = torch.randn(1, 3, 6, 5)
    assert worst_error(fused(x), model(x)) < 1e-6
    assert len(seen) == 2


class Sharded(nn.Sequential):
    pass


Sharded.__name__ = 'FullyShardedDataParallel'


def test_weights_in_pieces_are_refused():
    model = nn.Sequential(Sharded(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).eval()
    with pytest.raises(ValueError, match=r'0 is sharded \(FSDP\).*gather a full state dict'):
        fuse(model)
