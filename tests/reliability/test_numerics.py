"""Fusing, online merging and their gradients stay within stated bounds, whatever the network and its statistics."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch.nn.modules.batchnorm import _BatchNorm

from repnext_mm import RepNeXt
from repnext_mm.hooks import FuseBackboneHook
from repnext_mm.models import FORMS, ChunkConv, CopyConv, Downsample, MetaNeXtBlock, RepDWConvM, RepDWConvS
from repnext_mm.models.branchwise import branch_by_branch
from repnext_mm.reparam import fuse, relative_error
from repnext_mm.reparam.fuse import count_norms
from repnext_mm.reparam.verify import all_within
from tests.conftest import randomize, worst_error

FLOAT64 = 1e-12  # of the largest value: a few thousand roundings
FEW_AND_MANY = [pytest.param(5, id='few'), pytest.param(300, id='many', marks=pytest.mark.slow)]
EXTREMES = {  # of a channel's norm: variance (eps is 1e-5), mean, gamma, beta
    'var': (0.0, 1e-12, 1e-5, 1.0, 1e6),
    'mean': (0.0, 1.0, -100.0, 1e4),
    'gamma': (0.0, 1.0, -3.0, 1e-3),
    'beta': (0.0, -1.0, 50.0),
}


def computes_float16():
    """Whether this torch convolves float16 on a CPU."""
    try:
        torch.nn.Conv2d(1, 1, 1).half()(torch.ones(1, 1, 2, 2).half())
    except RuntimeError:
        return False
    return True


FLOAT16 = pytest.mark.skipif(not computes_float16(), reason='this torch has no float16 convolutions on a CPU')
HALVES = pytest.mark.parametrize('dtype', [torch.bfloat16, pytest.param(torch.float16, marks=FLOAT16)], ids=str)


def checked(examples, **strategies):
    """Run a check on so many examples, the same at every run."""
    phases = (Phase.generate,)  # to shrink a failing network takes hours, and says little
    profile = settings(max_examples=examples, derandomize=True, deadline=None, database=None, phases=phases)
    return lambda check: profile(given(**strategies)(check))()


@st.composite
def architectures(draw):
    width = 4 * draw(st.integers(1, 5))
    return {
        'embed_dims': tuple(width * 2**stage for stage in range(4)),
        'depths': tuple(draw(st.integers(1, 2)) for _ in range(4)),
        'mlp_ratio': draw(st.sampled_from((0.5, 1, 1.5, 2, 3))),
        'token_mixer': draw(st.sampled_from(('multi', 'multi', 'single'))),
    }


sizes = st.tuples(st.integers(32, 75), st.integers(32, 75))
seeds = st.integers(0, 2**31)


def extreme(model, seed):
    """Norms with statistics that training should never leave, but does."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for tensor, values in zip(
                (module.running_var, module.running_mean, module.weight, module.bias), EXTREMES.values(), strict=True
            ):
                chosen = torch.randint(len(values), tensor.shape, generator=generator)
                tensor.data.copy_(torch.tensor(values, dtype=tensor.dtype)[chosen])
    return model


def magnitudes(model):
    """The same network over absolute values: what roundings inside are relative to, however much cancels later."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.abs_().neg_()
    for parameter in model.parameters():
        parameter.data.abs_()
    return model


@pytest.mark.parametrize('examples', FEW_AND_MANY)
def test_any_network_fuses_exactly(examples):
    @checked(
        examples,
        arch=architectures(),
        size=sizes,
        batch=st.integers(1, 2),
        channels=st.integers(1, 4),
        form=st.sampled_from(FORMS),
        indices=st.sets(st.integers(0, 3), min_size=1).map(sorted),
        seed=seeds,
    )
    def check(arch, size, batch, channels, form, indices, seed):
        torch.manual_seed(seed)
        model = randomize(RepNeXt(arch, in_channels=channels, out_indices=indices), seed=seed).double().eval()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        probe = torch.randn(batch, channels, *size, dtype=torch.float64)
        fused, report = fuse(model, form=form)
        assert report
        assert (count_norms(fused) == 0) == (form != 'keep_norms')
        for other in (fused, model):
            errors = relative_error(other, branch_by_branch(model), probe)
            assert len(errors) == len(indices)
            assert all_within(errors, FLOAT64), errors
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        again, second = fuse(fused, form=form)
        assert again is fused
        assert not second


@pytest.mark.parametrize('examples', FEW_AND_MANY)
def test_any_mixer_and_its_gradients(examples):
    kinds = {
        'small': RepDWConvS,
        'small s2': lambda n: RepDWConvS(n, stride=2),
        'medium': RepDWConvM,
        'medium s2': lambda n: RepDWConvM(n, stride=2),
        'chunk': lambda n: ChunkConv.train_form(4 * n),
        'copy': CopyConv.train_form,
    }

    @checked(
        examples,
        kind=st.sampled_from(sorted(kinds)),
        channels=st.integers(1, 9),
        height=st.integers(1, 23),
        width=st.integers(1, 23),
        batch=st.integers(1, 3),
        seed=seeds,
    )
    def check(kind, channels, height, width, batch, seed):
        torch.manual_seed(seed)
        module = kinds[kind](channels).double()
        inputs = channels * 4 if kind == 'chunk' else channels
        x = torch.randn(batch, inputs, height, width, dtype=torch.float64, requires_grad=True)
        y, definition = module(x), branch_by_branch(module)(x)
        assert worst_error(y, definition) < FLOAT64
        direction = torch.randn_like(y)
        tensors = [x, *module.parameters()]
        for ours, theirs in zip(
            torch.autograd.grad(y, tensors, direction), torch.autograd.grad(definition, tensors, direction), strict=True
        ):
            assert (ours - theirs).abs().max() <= FLOAT64 * max(theirs.abs().max(), direction.abs().max())


@pytest.mark.parametrize('examples', FEW_AND_MANY)
def test_any_network_trains_alike_with_frozen_norms(examples):
    @checked(examples, arch=architectures(), size=sizes, seed=seeds)
    def check(arch, size, seed):
        torch.manual_seed(seed)
        model = randomize(RepNeXt(arch, norm_eval=True), seed=seed).double().train()
        probe = torch.randn(1, 3, *size, dtype=torch.float64)
        gradients = []
        for network in (model, branch_by_branch(model)):
            model.zero_grad()
            sum(level.square().mean() for level in network(probe)).backward()
            gradients.append({name: value.grad.clone() for name, value in model.named_parameters()})
        scale = max(gradient.abs().max() for gradient in gradients[1].values())
        for name, gradient in gradients[0].items():
            assert (gradient - gradients[1][name]).abs().max() <= FLOAT64 * scale, name


def blocks():
    """Each kind of module that folds a norm, by name, with what it takes and gives."""
    common = {'mlp_ratio': 2, 'norm_cfg': {'type': 'BN'}, 'act_cfg': {'type': 'GELU'}}
    return {
        'block': lambda: MetaNeXtBlock.train_form(8, ChunkConv.train_form(8), **common),
        'downsample': lambda: Downsample.train_form(16, CopyConv.train_form(8), **common),
        'stem': lambda: RepNeXt({'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}, in_channels=8).stem,
    }


@pytest.mark.parametrize('examples', FEW_AND_MANY)
def test_extreme_statistics(examples):
    """Within roundings of what is summed up inside, though most of it may cancel."""

    @checked(
        examples,
        kind=st.sampled_from(sorted(blocks())),
        seed=seeds,
        size=st.tuples(st.integers(2, 20), st.integers(2, 20)),
    )
    def check(kind, seed, size):
        torch.manual_seed(seed)
        module = extreme(blocks()[kind]().double(), seed).eval()
        x = torch.randn(2, 8, *size, dtype=torch.float64)
        with torch.no_grad():
            exact = branch_by_branch(module)(x)
            bound = branch_by_branch(magnitudes(module))(x.abs())
            assert torch.isfinite(exact).all()
            for form in FORMS:
                fused, _ = fuse(module, form=form)
                for network, eps in ((fused, 2**-53), (module, 2**-53), (copy.deepcopy(fused).float(), 2**-24)):
                    dtype = next(network.parameters()).dtype
                    error = (network(x.to(dtype)).double() - exact).abs()
                    assert (error <= 100 * eps * bound).all(), (form, dtype, (error / bound).max() / eps)


@HALVES
@pytest.mark.parametrize('examples', FEW_AND_MANY)
def test_half_precision_under_autocast(examples, dtype):
    """Against float32, fused and merged networks are no worse than the branches apart are under autocast."""

    @checked(examples, arch=architectures(), size=sizes, seed=seeds)
    def check(arch, size, seed):
        torch.manual_seed(seed)
        model = randomize(RepNeXt(arch), seed=seed).eval()
        probe = torch.randn(1, 3, *size)
        apart = branch_by_branch(model)
        networks = {'apart': apart, 'merged': model, 'fused': fuse(model)[0], 'dense': fuse(model, form='dense')[0]}
        with torch.no_grad():
            reference = apart(probe)
            errors = {}
            with torch.autocast('cpu', dtype):
                for name, network in networks.items():
                    levels = [level.float() for level in network(probe)]
                    errors[name] = max(map(worst_error, levels, reference))
        eps = torch.finfo(dtype).eps
        assert all(error <= 3 * errors['apart'] + 4 * eps for error in errors.values()), errors
        assert max(errors.values()) < 40 * eps, errors


@HALVES
def test_half_precision_gradients(dtype):
    torch.manual_seed(0)
    model = randomize(RepNeXt({'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}, norm_eval=True)).train()
    probe = torch.randn(2, 3, 65, 97)

    def gradients(network, cast):
        model.zero_grad()
        with torch.autocast('cpu', dtype, enabled=cast):
            loss = sum(level.float().square().mean() for level in network(probe))
        loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    reference = gradients(branch_by_branch(model), False)
    scale = max(gradient.abs().max() for gradient in reference)
    apart, merged = (
        [(a - b).abs().max() / scale for a, b in zip(gradients(network, True), reference, strict=True)]
        for network in (branch_by_branch(model), model)
    )
    assert max(merged) <= 3 * max(apart) + torch.finfo(dtype).eps
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize('examples', FEW_AND_MANY)
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf], ids=str)
def test_no_weight_that_is_no_number_passes(examples, value):
    """Any weight or statistic. An infinite variance is a number in effect: it switches its channel off."""
    torch.manual_seed(0)
    source = randomize(RepNeXt({'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)})).eval()
    probe = torch.randn(1, 3, 64, 64)
    names = [name for name, tensor in source.state_dict().items() if tensor.is_floating_point()]

    @checked(examples, name=st.sampled_from(names), place=st.integers(0, 2**20), form=st.sampled_from(FORMS))
    def check(name, place, form):
        assume(not (value == math.inf and name.endswith('running_var')))
        model = copy.deepcopy(source)
        tensor = model.state_dict()[name]
        tensor.view(-1)[place % tensor.numel()] = value
        errors = relative_error(fuse(model, form=form)[0], model, probe)
        assert not all_within(errors, math.inf), errors


@pytest.mark.parametrize('value', [math.nan, math.inf], ids=str)
def test_no_rim_of_a_kernel_that_is_no_number_passes(value):
    """The last level is smaller than its kernels: their rims meet padding only, and the outputs are numbers."""
    model = randomize(RepNeXt({'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)})).eval()
    probe = torch.randn(1, 3, 33, 33)
    kernel = model.stages[3].blocks[0].token_mixer.conv_l[1].weight
    kernel.data[0, 0, 0] = value
    assert all(level.isfinite().all() for level in model(probe))
    assert not all_within(relative_error(fuse(model)[0], model, probe), math.inf)


@pytest.mark.parametrize('value', [math.nan, math.inf], ids=str)
def test_no_input_that_is_no_number_passes(value):
    model = randomize(RepNeXt({'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)})).eval()
    probe = torch.randn(1, 3, 64, 64)
    probe[0, 1, 33, 7] = value
    assert not all_within(relative_error(fuse(model)[0], model, probe), math.inf)
    with pytest.raises(ValueError, match='empty outputs.*take a larger input'):
        relative_error(fuse(model)[0], model, probe[:0])


@FLOAT16
def test_half_precision_that_overflows_when_fused_is_refused():
    """A variance near 0 and a large mean: the branches run, the fused bias does not fit."""
    model = torch.nn.Module()
    model.backbone = randomize(RepNeXt({'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)})).eval()
    norm = model.backbone.stages[1].downsample.norm
    norm.running_var.fill_(1e-12)
    norm.running_mean.fill_(1e4)
    model.bfloat16()
    FuseBackboneHook(tolerance=1.0).fuse_backbone(model)
    model.half()
    with pytest.raises((RuntimeError, ValueError), match='look for NaN or extreme norm statistics'):
        FuseBackboneHook(tolerance=1.0).fuse_backbone(model)
