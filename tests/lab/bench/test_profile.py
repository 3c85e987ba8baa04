"""The floor is arithmetic and bytes over what the machine was seen to do; modules are told apart by their part."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from repnext_mm.errors import UserError
from repnext_mm.hooks.compile_backbone import check_compiler
from repnext_mm.lab.bench.profile import (
    PROFILED,
    eager_kind,
    find_hot_spots,
    find_step_spots,
    machine_line,
    onnx_kind,
    openvino_kind,
    operations_table,
    time_by_module,
)
from repnext_mm.lab.bench.training import EVAL_NORMS, TRAIN, merged_once, ways_to_train
from repnext_mm.models import RepNeXt
from repnext_mm.reparam import fuse
from tests.tools.running import ROOT, run_tool


@pytest.fixture(autouse=True)
def quick_rates(monkeypatch):
    """The machine's rates from small matrices and copies; they are of no account here but for being there."""
    monkeypatch.setattr('repnext_mm.lab.bench.profile.MATRICES', ((64, 64, 64),))
    monkeypatch.setattr('repnext_mm.lab.bench.profile.COPY_MIB', 1)


TINY = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}


def test_bytes_of_a_convolution():
    network = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.GELU())
    spots = find_hot_spots(network, torch.ones(1, 3, 4, 4), rounds=1)
    assert spots.memory_ms * spots.bandwidth_gbs * 1e6 == pytest.approx(4 * (3 * 16 + 8 * 16 + 24))


def test_a_network():
    network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.GELU(), nn.Conv2d(64, 64, 1)).eval()
    spots = find_hot_spots(network, torch.randn(1, 3, 32, 32), rounds=3)
    assert spots.gmacs == (27 * 64 + 64 * 64) * 32 * 32 / 1e9
    assert {'1x1 convolutions', 'stem', 'activation'} <= spots.by_kind_ms.keys()
    assert list(spots.by_kind_ms.values()) == sorted(spots.by_kind_ms.values(), reverse=True)
    assert spots.floor_ms >= spots.arithmetic_ms == pytest.approx(2e3 * spots.gmacs / spots.matrix_gflops)
    assert spots.bandwidth_gbs > 0.1
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.slow
def test_a_trace_for_the_browser(tmp_path):
    run_tool(
        ROOT / 'tools/profile_backbone.py',
        '--arch',
        'm0',
        '--forms',
        'default',
        '--shape',
        '1x3x32x32',
        '--rounds',
        '1',
        '--trace',
        'trace.json',
        cwd=tmp_path,
    )
    events = json.loads((tmp_path / 'trace.default.json').read_text())['traceEvents']
    assert 'aten::conv2d' in {event.get('name') for event in events}
    shown = run_tool(
        ROOT / 'tools/profile_backbone.py', '--by', 'module', '--trace', 'trace.json', cwd=tmp_path, expect=1
    )
    assert 'error: --trace: PyTorch writes it' in shown


def compiles() -> bool:
    try:
        check_compiler('cpu')
    except UserError:
        return False
    return True


@pytest.mark.parametrize(
    'runtime',
    [
        pytest.param('onnxruntime', marks=pytest.mark.slow),
        'openvino',
        pytest.param('compile', marks=pytest.mark.slow),
    ],
)
def test_another_runtime_tells_where_its_time_goes(runtime):
    if runtime != 'compile':
        pytest.importorskip(runtime)
        pytest.importorskip('onnxscript')
    elif not compiles():
        pytest.skip('no compiler here')
    network, _ = fuse(MODELS.build({'type': 'RepNeXt', 'arch': TINY}).eval(), form='keep_norms', copy=True)
    spots = find_hot_spots(network, torch.randn(1, 3, 64, 64), rounds=2, runtime=runtime, threads=1)
    assert spots.by_kind_ms.keys() >= {'1x1 convolutions', 'depthwise convolutions', 'stem'}
    assert all(spent > 0 for spent in spots.by_kind_ms.values())


def test_a_runtime_without_a_profile():
    with pytest.raises(ValueError, match=f"'torchscript' is not profiled: choose one of {', '.join(PROFILED)}"):
        find_hot_spots(nn.Conv2d(3, 8, 1), torch.ones(1, 3, 4, 4), runtime='torchscript')


def test_by_module():
    network, _ = fuse(MODELS.build({'type': 'RepNeXt', 'arch': TINY}).eval(), form='keep_norms', copy=True)
    spent = time_by_module(network, torch.randn(1, 3, 64, 64), rounds=2)
    assert list(spent)[:4] == ['stem', 'stage 1: token_mixer', 'stage 1: norm', 'stage 1: channel_mixer']
    assert 'stage 2: downsample' in spent
    assert list(spent)[-1] == 'shortcuts and the rest'
    assert all(value > 0 for value in spent.values())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.slow
def test_the_tool(tmp_path):
    tool = ROOT / 'tools/profile_backbone.py', '--arch', 'm0', '--shape', '1x3x64x64', '--rounds', '2'
    output = run_tool(*tool, '--forms', 'default', 'dense', cwd=tmp_path)
    assert '| depthwise convolutions ' in output
    assert '**arithmetic at the matrix rate**' in output
    assert '| stage 4: token_mixer ' in run_tool(*tool, '--forms', 'default', '--by', 'module', cwd=tmp_path)
    steps = run_tool(*tool[:3], '--shape', '2x3x64x64', '--rounds', '2', '--train', '--norm-eval', cwd=tmp_path)
    assert '| train form | branches | merged once |' in re.sub(' +', ' ', steps)
    assert "unknown arch 'm9'" in run_tool(*tool[:2], 'm9', cwd=tmp_path, expect=1)
    refused = run_tool(*tool, '--by', 'module', '--runtime', 'compile', cwd=tmp_path, expect=1)
    assert ('--by module: compile has no modules' if compiles() else 'needs a C++ compiler') in refused


@pytest.mark.parametrize(
    ('key', 'shapes', 'kind'),
    [
        ('aten::mkldnn_convolution', [[1, 64, 7, 7], [128, 64, 1, 1]], '1x1 convolutions'),
        ('mkldnn::_convolution_pointwise', [[1, 64, 7, 7], [128, 64, 1, 1]], '1x1 convolutions'),
        ('aten::convolution_backward', [[2, 8, 9, 9], [2, 8, 9, 9], [8, 1, 7, 7]], 'depthwise convolutions'),
        ('aten::cudnn_convolution', [[1, 64, 7, 7], [64, 1, 7, 7]], 'depthwise convolutions'),
        ('aten::mkldnn_convolution', [[1, 3, 7, 7], [64, 3, 3, 3]], 'stem'),
        ('aten::gelu_', [[1, 3, 7, 7]], 'activation'),
        ('aten::native_batch_norm_backward', [[1, 3, 7, 7]], 'norms'),
        ('aten::native_batch_norm', [[1, 1, 7, 7]], 'norms'),
        ('aten::cat', [[]], 'copies and concatenations'),
        ('aten::add_', [[2, 64, 9, 9], [2, 64, 9, 9]], 'additions'),
        ('aten::add', [[64, 1, 7, 7], [64, 1, 7, 7]], 'on weights (merging, folding, layout)'),
        ('aten::mul', [[64, 32, 1, 1], [64, 1, 1, 1]], 'on weights (merging, folding, layout)'),
        ('aten::mul', [[64]], 'on weights (merging, folding, layout)'),
        ('aten::_foreach_add_', [[]], 'optimizer'),
        ('aten::empty', [[]], 'views, allocation and dispatch'),
        ('graph_0_cpp_fused_gelu_3', [], 'generated code'),
        ('ProfilerStep*', [], None),
    ],
)
def testeager_kinds(key, shapes, kind):
    assert eager_kind(key, shapes) == kind


@pytest.mark.parametrize(
    ('name', 'shapes', 'kind'),
    [
        ('Conv', [[1, 64, 7, 7], [128, 64, 1, 1], [128]], '1x1 convolutions'),
        ('FusedConv', [[1, 64, 7, 7], [64, 1, 7, 7]], 'depthwise convolutions'),
        ('Conv', [[1, 3, 7, 7], [64, 3, 3, 3]], 'stem'),
        ('Gelu', [[1, 64, 7, 7]], 'activation'),
        ('BatchNormalization', [[1, 64, 7, 7]], 'norms'),
        ('ReorderOutput', [[1, 64, 7, 7]], 'copies and concatenations'),
        ('Add', [[1, 64, 7, 7]], 'additions'),
        ('Shape', [[1, 64, 7, 7]], 'views, allocation and dispatch'),
    ],
)
def test_onnxruntime_kinds(name, shapes, kind):
    assert onnx_kind({'op_name': name, 'input_type_shape': [{'float': shape} for shape in shapes]}) == kind


@pytest.mark.parametrize(
    ('node', 'primitive', 'kind'),
    [
        ('Convolution', 'brgconv_avx512_1x1_f32', '1x1 convolutions'),
        ('Convolution', 'jit_avx512_f32', 'stem'),
        ('GroupConvolution', 'jit_avx512_dw_f32', 'depthwise convolutions'),
        ('Concatenation', 'unknown_f32', 'copies and concatenations'),
        ('Reorder', 'jit_uni_f32', 'copies and concatenations'),
        ('Eltwise', 'jit_avx512_f32', 'additions'),
    ],
)
def testopenvino_kinds(node, primitive, kind):
    assert openvino_kind(SimpleNamespace(node_type=node, exec_type=primitive)) == kind


def test_a_step_is_profiled_in_the_precision_that_is_named(monkeypatch):
    seen, original = set(), RepNeXt.forward

    def forward(self, x):
        levels = original(self, x)
        seen.update(level.dtype for level in levels)
        return levels

    monkeypatch.setattr(RepNeXt, 'forward', forward)
    find_step_spots(TINY, shape=(2, 3, 32, 32), rounds=1)
    assert seen == {torch.float32}
    find_step_spots(TINY, shape=(2, 3, 32, 32), rounds=1, dtype='bfloat16')
    assert torch.bfloat16 in seen
    with pytest.raises(UserError, match="dtype='int8' is not one of float32, bfloat16: choose one of those"):
        find_step_spots(TINY, shape=(2, 3, 32, 32), rounds=1, dtype='int8')


@pytest.mark.parametrize('norm_eval', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_three_ways(norm_eval):
    spots = find_step_spots(TINY, shape=(2, 3, 64, 64), norm_eval=norm_eval, rounds=2)
    assert list(spots) == ['train form', 'branches', 'merged once']
    for step in spots.values():
        assert {'1x1 convolutions', 'depthwise convolutions', 'activation', 'optimizer'} <= step.by_kind_ms.keys()
        assert step.arithmetic_ms == pytest.approx(6e3 * step.gmacs / step.matrix_gflops)
        assert step.latency.n == 2
    assert ('norms' in spots[TRAIN].by_kind_ms) == (not norm_eval)
    assert spots['branches'].gmacs > spots[TRAIN].gmacs == pytest.approx(spots['merged once'].gmacs)
    table = operations_table(spots)
    assert '| **latency, median** ' in table
    assert 'memory bandwidth' not in table
    assert 'GFLOP/s' in machine_line(spots)


@pytest.mark.parametrize('norm_eval', [False, True])
def test_merged_once_is_the_same_network_with_other_parameters(norm_eval):
    images = torch.randn(2, 3, 64, 64)
    online = ways_to_train(TINY, like=images)[TRAIN + EVAL_NORMS * norm_eval].run
    before = {key: value.clone() for key, value in online.state_dict().items()}
    way = merged_once(online, norm_eval=norm_eval)
    after = online.state_dict()
    assert online.training
    assert all(torch.equal(after[key], value) for key, value in before.items())
    for ours, theirs in zip(way.run(images), online(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert all(parameter.requires_grad for parameter in way.parameters)
    assert len(way.parameters) < len(list(online.parameters()))
