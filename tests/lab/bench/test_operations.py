"""Operations are sorted into kinds by their names and by the shapes of their weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from repnext_mm.lab.bench.operations import _eager_kind, _onnx_kind, _openvino_kind


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
def test_eager_kinds(key, shapes, kind):
    assert _eager_kind(key, shapes) == kind


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
    assert _onnx_kind({'op_name': name, 'input_type_shape': [{'float': shape} for shape in shapes]}) == kind


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
def test_openvino_kinds(node, primitive, kind):
    assert _openvino_kind(SimpleNamespace(node_type=node, exec_type=primitive)) == kind
