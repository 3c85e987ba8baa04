"""Every deploy form of the multi-scale mixer equals its branches, down to images smaller than the kernels."""

from __future__ import annotations

import pytest
import torch

from repnext_mm import RepNeXt
from repnext_mm.models import FORMS
from repnext_mm.models.repnext import ChunkConv
from repnext_mm.reparam import fuse, relative_error
from repnext_mm.reparam.fuse import count_norms
from tests.conftest import fast, randomize, worst_error

TINY = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 2, 1)}
SIZES = [(1, 1), (2, 7), (5, 5), (9, 6), (10, 10), (11, 3), (24, 17)]
MIXED = {'stages.0': 'dense', 'stages.2': 'half', 'stages.2.blocks.1': 'dense'}
# the second one of 'dense' reads a column of ones
CONVOLUTIONS = {'default': 4, 'keep_norms': 4, 'half': 3, 'three_quarters': 3, 'dense': 2, 'balanced': 4}


@pytest.fixture(scope='module')
def mixer() -> ChunkConv:
    torch.manual_seed(0)
    return ChunkConv.train_form(8).double().eval()


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('form', FORMS)
def test_a_mixer_equals_its_branches(form, size, mixer):
    x = torch.randn(2, 8, *size).double()
    i, s, m, large = x.chunk(4, 1)
    expected = torch.cat([i, mixer.conv_s.branches(s), mixer.conv_m.branches(m), mixer.conv_l(large)], 1)
    fused, _ = fuse(mixer, form=form)
    assert worst_error(fused(x), expected) < 1e-13


@pytest.mark.parametrize('form', FORMS)
def test_how_many_convolutions_run(form, mixer):
    fused, _ = fuse(mixer, form=form)
    run = []
    convs = [module for module in fused.modules() if isinstance(module, torch.nn.Conv2d)]
    handles = [conv.register_forward_hook(lambda *_: run.append(1)) for conv in convs]
    fused(torch.randn(1, 8, 12, 12).double())
    for handle in handles:
        handle.remove()  # the large scale is shared with the mixer
    assert len(run) == CONVOLUTIONS[form]


@pytest.mark.parametrize('source', ['train form', 'deploy form'])
@pytest.mark.parametrize('form', [*FORMS, MIXED], ids=str)
def test_a_backbone_in_any_form(form, source):
    model = randomize(RepNeXt(TINY)).double().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    start = model if source == 'train form' else fuse(model)[0]
    fused, report = fuse(start, form=form)
    for size in ((32, 32), (65, 97)):
        assert max(relative_error(fused, model, torch.randn(2, 3, *size).double())) < 1e-12
    assert report.norms_after == count_norms(fused)
    if form != 'keep_norms':
        assert report.norms_after == 0
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('form', FORMS)
def test_dtype_and_memory_format_are_kept(form, dtype):
    model = randomize(RepNeXt(TINY)).eval().to(dtype=dtype, memory_format=torch.channels_last)
    fused, _ = fuse(model, form=form)
    assert {value.dtype for value in (*fused.parameters(), *fused.buffers()) if value.is_floating_point()} == {dtype}
    probe = torch.randn(1, 3, 40, 33).to(dtype)
    assert max(relative_error(fused, model, probe)) < 32 * torch.finfo(dtype).eps


@pytest.mark.parametrize('form', fast(FORMS, 'default', 'balanced'))
def test_compiles_without_graph_breaks(form):
    torch.compiler.reset()
    model = randomize(RepNeXt(TINY)).eval()
    fused, _ = fuse(model, form=form)
    compiled = torch.compile(fused, fullgraph=True, backend='eager')
    with torch.inference_mode():
        for size in ((64, 64), (33, 47)):
            x = torch.randn(1, 3, *size)
            assert all(torch.equal(a, b) for a, b in zip(compiled(x), fused(x), strict=True))


@pytest.mark.parametrize('form', FORMS)
def test_a_traced_graph_knows_other_sizes(form):
    model = randomize(RepNeXt(TINY)).double().eval()
    fused, _ = fuse(model, form=form)
    traced = torch.jit.trace(fused, torch.randn(1, 3, 64, 64).double())
    x = torch.randn(2, 3, 35, 50).double()
    assert all(worst_error(a, b) < 1e-12 for a, b in zip(traced(x), model(x), strict=True))


def trained(token_mixer: str) -> RepNeXt:
    """With convolutions whose channels differ by up to 1,000 in scale, which the norm behind them makes up for."""
    model = randomize(RepNeXt({**TINY, 'token_mixer': token_mixer})).double().eval()
    for stage in model.stages:
        for block in stage.blocks:
            last = block.token_mixer if token_mixer == 'single' else block.token_mixer.conv_l[1]
            made = last.out_channels
            scale = 30 ** torch.linspace(-1, 1, made)[torch.randperm(made)].double()
            with torch.no_grad():
                last.weight *= scale[:, None, None, None]
                last.bias *= scale
                block.norm.running_mean[-made:] *= scale
                block.norm.running_var[-made:] *= scale**2
    return model


@pytest.mark.parametrize('source', ['train form', 'keep_norms'])
@pytest.mark.parametrize('token_mixer', ['multi', 'single'])
def test_balanced_is_exact_and_leaves_the_columns_of_mixed_channels(token_mixer, source):
    model = trained(token_mixer)
    start = model if source == 'train form' else fuse(model, form='keep_norms')[0]
    fused, report = fuse(start, form='balanced')
    for size in ((32, 32), (65, 97), (33, 47)):
        assert max(relative_error(fused, model, torch.randn(2, 3, *size).double())) < 1e-12
    assert report.norms_after == count_norms(fused) == 0
    block, before = fused.stages[2].blocks[1], model.stages[2].blocks[1]
    passed = 8 if token_mixer == 'multi' else 0
    columns, theirs = block.channel_mixer[0].weight, before.channel_mixer[0].kernel().weight
    assert worst_error(columns[:, passed:], theirs[:, passed:]) < 1e-15
    assert passed == 0 or worst_error(columns[:, :passed], theirs[:, :passed]) > 0.1
    default, _ = fuse(model)
    assert [*fused.state_dict()] == [*default.state_dict()]
    again, nothing = fuse(fused, form='balanced')
    assert again is fused
    assert not nothing


@pytest.mark.parametrize('token_mixer', ['multi', 'single'])
def test_balanced_weights_bear_int8_better(token_mixer):
    model, x = trained(token_mixer), torch.randn(1, 3, 64, 64).double()

    def error(form: str) -> float:
        fused, _ = fuse(model, form=form, copy=True)
        for module in fused.modules():
            if isinstance(module, torch.nn.Conv2d) and module.groups == 1:  # depthwise ones stay in float
                step = module.weight.data.abs().amax((1, 2, 3), keepdim=True) / 127
                module.weight.data = (module.weight.data / step).round() * step
        return max(relative_error(fused, model, x))

    assert error('balanced') < error('default') / 2


def test_a_block_whose_mixer_has_to_be_called_is_fused_by_default_instead():
    model, x = trained('multi'), torch.randn(1, 3, 64, 64).double()
    for stage in model.stages:
        for block in stage.blocks:
            block.token_mixer.conv_l[1].register_forward_hook(lambda module, args, output: 2 * output)
    fused, report = fuse(model, form='balanced')
    assert max(relative_error(fused, model, x)) < 1e-12
    assert report.norms_after == 0
    assert any('conv_l.1: it has hooks' in reason for reason in report.refused)
