"""What holds on a CPU holds on a GPU: fusing, merging, mixed precision, captured graphs, compiled training.

Other tests run on a CPU where there is a GPU too, but for those of operators and of timing that say so.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repnext_mm import RepNeXt
from repnext_mm.hooks import CompileBackboneHook, FuseBackboneHook
from repnext_mm.lab.bench.runtimes import captured, prepare
from repnext_mm.lab.bench.training import TRAIN, step_of, ways_to_train
from repnext_mm.models.branchwise import branch_by_branch
from repnext_mm.models.mixer_forms import FORMS
from repnext_mm.reparam import fuse, fuse_checked, relative_error
from tests.conftest import needs_gpu, randomize, worst_error
from tests.hooks.tiny_run import ARCH, make_runner

pytestmark = needs_gpu

ARCHS = ('m0', 'm1', 'm2', 'm3', 'm4', 'm5', 'm0e')


@pytest.fixture
def float32_is_float32(monkeypatch):
    """PyTorch's default lets cuDNN multiply float32 in TF32, with ten bits."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


def network(arch: str | dict[str, Any] = 'm0', **options) -> RepNeXt:
    return randomize(RepNeXt(arch, **options)).cuda()


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape or (2, 3, 96, 128), dtype=dtype).cuda()


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    sum(feature.to(torch.promote_types(feature.dtype, torch.float32)).pow(2).mean() for feature in model(x)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The norm of the difference of all gradients, relative to that of all gradients."""
    assert found.keys() == expected.keys()
    assert all(value.isfinite().all() for value in found.values())
    one, other = (
        torch.cat([values[name].double().cpu().flatten() for name in expected]) for values in (found, expected)
    )
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize('arch', ARCHS)
def test_fusing_is_exact(arch):
    model, x = network(arch).double().eval(), images(1, 3, 65, 97, dtype=torch.float64)
    for form in FORMS:
        fused, report = fuse(model, form=form)
        assert report
        assert max(relative_error(fused, model, x)) < 1e-12, form


@pytest.mark.parametrize('dtype, bound', [(torch.float32, 1e-5), (torch.float16, 0.016)])
def test_what_is_fused_is_checked_without_tf32(dtype, bound):
    assert torch.backends.cudnn.allow_tf32
    fused, report = fuse_checked(network('m1').eval().to(dtype))
    assert max(report.errors) < bound
    assert next(fused.parameters()).is_cuda
    assert torch.backends.cudnn.allow_tf32


def test_a_gpu_computes_what_a_cpu_does():
    model = randomize(RepNeXt('m0')).double().train()
    twin, x = copy.deepcopy(model).cuda(), torch.randn(2, 3, 64, 96).double()
    assert apart(gradients(twin, x.cuda()), gradients(model, x)) < 1e-11
    for name, value in model.named_buffers():
        torch.testing.assert_close(twin.get_buffer(name).cpu(), value, rtol=1e-11, atol=1e-12)
    for one, other in zip(twin.eval()(x.cuda()), model.eval()(x), strict=True):
        assert worst_error(one.cpu(), other) < 1e-11


@pytest.mark.parametrize('arch', ['m0', 'm0e'])
@pytest.mark.parametrize('norm_eval', [False, True])
def test_merging_trains_as_the_branches_do(arch, norm_eval):
    model = network(arch, norm_eval=norm_eval).double().train()
    x = images(dtype=torch.float64)
    merged = gradients(model, x)
    assert apart(gradients(branch_by_branch(model), x), merged) < 1e-10


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=['NCHW', 'NHWC'])
@pytest.mark.parametrize('dtype, bound', [(torch.float16, 0.02), (torch.bfloat16, 0.1)])
def test_mixed_precision(float32_is_float32, dtype, bound, memory_format):
    """Norms in eval mode: statistics of two random images would magnify what is rounded."""
    model = network(norm_eval=True).train().to(memory_format=memory_format)
    x = images().to(memory_format=memory_format)
    expected, features = gradients(model, x), [feature.detach() for feature in model(x)]
    with torch.autocast('cuda', dtype):
        assert apart(gradients(model, x), expected) < bound
        mixed = model(x)
    for one, other in zip(mixed, features, strict=True):
        assert one.dtype == dtype
        assert worst_error(one.float(), other) < bound


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=['NCHW', 'NHWC'])
def test_a_captured_graph_computes_what_the_network_does(float32_is_float32, memory_format):
    fused = fuse(network().eval())[0].to(memory_format=memory_format)
    x = images(1, 3, 96, 96).to(memory_format=memory_format)
    with torch.inference_mode():
        replay = prepare(fused, x, runtime='cudagraph', threads=1)
        x.copy_(torch.randn_like(x))
        found = [feature.clone() for feature in replay()]
        assert max(worst_error(a, b) for a, b in zip(found, fused(x), strict=True)) < 1e-5


def test_captured_steps_train_as_others_do(float32_is_float32):
    x, none, ways = images(), nullcontext, {}
    for name in ('eager', 'captured'):
        torch.manual_seed(0)
        way = ways[name] = ways_to_train('m0', like=x)[TRAIN]
        way.optimizer.param_groups[0].update(lr=0.1, eps=1.0)  # smooth in the gradient, unlike its sign
    step, replay = step_of(ways['eager'], x, none), captured(step_of(ways['captured'], x, none))
    for _ in range(4):  # capturing warms up with three, and the capture itself runs nothing
        step()
    replay()
    for one, other in zip(ways['captured'].parameters, ways['eager'].parameters, strict=True):
        assert worst_error(one, other) < 1e-3


def test_compiled_it_trains_as_otherwise(float32_is_float32, tmp_path):
    torch._dynamo.reset()
    runner = make_runner(tmp_path, length=1)
    backbone = runner.model.backbone = network(ARCH).train()
    x = images(2, 3, 64, 96)
    expected = gradients(backbone, x)
    hook = CompileBackboneHook()
    hook.before_train(runner)
    assert apart(gradients(backbone, x), expected) < 1e-3
    hook.after_train(runner)


@pytest.mark.parametrize('precision', ['float32', 'float16', 'bfloat16'])
def test_what_a_gpu_trained_a_cpu_reads(float32_is_float32, tmp_path, precision):
    runner = make_runner(tmp_path, scores=[1, 2, 3], hooks=[FuseBackboneHook()])
    if precision != 'float32':
        runner.optim_wrapper = {**runner.optim_wrapper, 'type': 'AmpOptimWrapper', 'dtype': precision}
    runner.train()
    trained = runner.model.backbone.eval()
    assert all(parameter.is_cuda for parameter in trained.parameters())
    weights = dict(type='Pretrained', checkpoint=str(tmp_path / 'epoch_3.pth'), prefix='backbone.')
    model = RepNeXt(ARCH, init_cfg=weights)
    model.init_weights()
    x = torch.randn(2, 3, 32, 32)
    assert max(worst_error(a, b.cpu()) for a, b in zip(model.eval()(x), trained(x.cuda()), strict=True)) < 1e-4
