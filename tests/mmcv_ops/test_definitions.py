"""The operators that mmcv compiles for GPUs only, against their definitions, through mmcv's own Python functions."""

from __future__ import annotations

import importlib
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repnext_mm.mmcv_ops import operators, roi
from .cases import uniform
from .swap import EVERYWHERE, put_operators

pytest.importorskip('mmcv.ops')

BOUND = {'atol': 1e-12, 'rtol': 1e-12}


@pytest.fixture(autouse=True, params=EVERYWHERE)
def ext(request, monkeypatch):
    """mmcv's functions on our operators, whichever the installed mmcv has."""
    put_operators(request.param, monkeypatch)
    return request.param


def random_tensor(*shape: int, seed: int = 0, low: float = -1.0, high: float = 1.0) -> Tensor:
    return uniform(np.random.RandomState(seed), *shape, low=low, high=high, dtype=torch.float64).requires_grad_()


def bilinear(feature: Tensor, y: float, x: float, *, border: bool) -> Tensor:
    """(C,) at a place of (C, H, W); with ``border`` the border's values reach one cell beyond it."""
    height, width = feature.shape[1:]
    if border:
        if y < -1 or y > height or x < -1 or x > width:
            return feature.new_zeros(len(feature))
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    total = feature.new_zeros(len(feature))
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total = total + (1 - abs(y - row)) * (1 - abs(x - column)) * feature[:, row, column]
    return total


ROIS = torch.tensor([[0, 1, 2, 17, 13], [1, -8, -5, 9, 30], [1, 6, 6, 6, 6], [0, 90, 90, 99, 99]], dtype=torch.float64)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_roi_align_in_threads_is_equal_to_the_bit(ext, monkeypatch, three_threads, dtype, layout):
    from mmcv.ops import roi_align

    if ext is not operators:
        pytest.skip('a GPU has threads of its own')

    used = []
    monkeypatch.setattr(roi, 'ENOUGH', 0)
    monkeypatch.setattr(roi, 'ThreadPoolExecutor', lambda count: used.append(count) or ThreadPoolExecutor(count))
    features = random_tensor(2, 5, 6, 7).detach().to(dtype, memory_format=layout).requires_grad_()
    rois = ROIS.to(dtype)

    def pooled_and_gradient():
        pooled = roi_align(features, rois, (3, 2), 0.25)
        sent = random_tensor(*pooled.shape, seed=1).detach().to(dtype)
        return pooled.detach(), torch.autograd.grad(pooled, features, sent)[0]

    found = pooled_and_gradient()
    with torch.inference_mode():
        alone = roi_align(features.detach(), rois, (3, 2), 0.25)
    assert used == ([] if dtype == torch.float16 else [2, 3, 2])  # 4 RoIs by two, 5 channels by two, 4 RoIs
    torch.set_num_threads(1)
    for one, other in zip((*found, alone), (*pooled_and_gradient(), found[0]), strict=True):
        assert torch.equal(one, other)


def test_roi_pool():
    from mmcv.ops import roi_pool

    features = random_tensor(2, 3, 6, 7)
    pooled = roi_pool(features, ROIS, (2, 3), 0.25)
    expected = torch.zeros_like(pooled)
    for number, (image, x1, y1, x2, y2) in enumerate(ROIS.tolist()):
        left, top, right, bottom = x1 / 4, y1 / 4, (x2 + 1) / 4, (y2 + 1) / 4
        for row in range(2):
            for column in range(3):
                rows, columns = (
                    slice(max(0, math.floor(start + at * size)), max(0, math.ceil(start + (at + 1) * size)))
                    for at, start, size in ((row, top, (bottom - top) / 2), (column, left, (right - left) / 3))
                )
                cells = features[int(image), :, rows, columns].flatten(1)
                if cells.shape[1]:
                    expected[number, :, row, column] = cells.max(1).values
    assert torch.equal(pooled, expected)
    sent = random_tensor(*pooled.shape, seed=1).detach()
    torch.testing.assert_close(
        *(torch.autograd.grad(output, features, sent)[0] for output in (pooled, expected)), **BOUND
    )


def test_roi_pool_takes_the_first_of_equal_cells_and_skips_rois_without_area():
    from mmcv.ops import roi_pool

    features = torch.zeros(1, 1, 4, 4, requires_grad=True)
    roi_pool(features, torch.tensor([[0.0, 0, 0, 3, 3], [0, 5, 5, 2, 2]]), 1, 1.0)[0].sum().backward()
    assert features.grad[0, 0].nonzero().tolist() == [[0, 0]]


@pytest.mark.parametrize('angle', [0.0, 0.3, 2.5634, 5.0])
def test_box_iou_rotated_of_boxes_with_a_common_line(angle):
    """Upright boxes that share edges have a known IoU, and keep it when they turn together."""
    from mmcv.ops import bbox_overlaps, box_iou_rotated

    upright = torch.tensor([[0.0, 0, 7, 15], [0, 0, 7, 17], [2, 0, 7, 15], [7, 0, 9, 4], [1, 1, 3, 3]])
    middle, size = (upright[:, :2] + upright[:, 2:]) / 2, upright[:, 2:] - upright[:, :2]
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    turned = torch.cat([middle @ turn, size, torch.full((5, 1), angle)], 1)
    torch.testing.assert_close(box_iou_rotated(turned, turned), bbox_overlaps(upright, upright), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('with_offset', [False, True])
def test_deform_roi_pool(sampling_ratio, with_offset):
    from mmcv.ops import deform_roi_pool

    features, offset = random_tensor(2, 3, 6, 7), random_tensor(4, 2, 2, 3, seed=1)
    pooled = deform_roi_pool(features, ROIS, offset if with_offset else None, (2, 3), 0.25, sampling_ratio, 0.1)
    expected = torch.zeros_like(pooled)
    for number, (image, x1, y1, x2, y2) in enumerate(ROIS.tolist()):
        left, top, width, height = x1 / 4 - 0.5, y1 / 4 - 0.5, (x2 - x1) / 4, (y2 - y1) / 4
        rows, columns = sampling_ratio or math.ceil(height / 2), sampling_ratio or math.ceil(width / 3)
        for row, column in np.ndindex(2, 3):
            dx, dy = offset[number, :, row, column].tolist() if with_offset else (0, 0)
            for i, j in np.ndindex(rows, columns):
                y = top + 0.1 * height * dy + (row + (i + 0.5) / rows) * height / 2
                x = left + 0.1 * width * dx + (column + (j + 0.5) / columns) * width / 3
                value = bilinear(features[int(image)], y, x, border=True) / (rows * columns)
                expected[number, :, row, column] += value
    torch.testing.assert_close(pooled, expected, **BOUND)
    sent = random_tensor(*pooled.shape, seed=2).detach()
    torch.testing.assert_close(
        *(torch.autograd.grad(output, features, sent, retain_graph=True)[0] for output in (pooled, expected)), **BOUND
    )


def test_deform_roi_pool_moves_along_the_slope():
    """By finite differences, for bins that lie inside the map: beyond its border mmcv's slope is another one."""
    from mmcv.ops import deform_roi_pool

    features, offset = random_tensor(1, 3, 9, 9).detach(), random_tensor(1, 2, 2, 2, seed=1)
    roi = torch.tensor([[0.0, 2.1, 2.2, 6.3, 7.4]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda moved: deform_roi_pool(features, roi, moved, 2, 1.0, 2, 0.1), offset)


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('gamma', [2.0, 1.5])
def test_sigmoid_focal_loss(weighted, gamma):
    from mmcv.ops import sigmoid_focal_loss

    logits, target = random_tensor(6, 4, low=-5, high=5), torch.tensor([0, 1, 2, 3, 3, 0 if weighted else 4])
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64) if weighted else None
    loss = sigmoid_focal_loss(logits, target, gamma, 0.25, weight, 'none')
    truth = F.one_hot(target, 5)[:, :4].to(logits)
    right = torch.where(truth == 1, logits.sigmoid(), 1 - logits.sigmoid())
    expected = -torch.where(truth == 1, 0.25, 0.75) * (1 - right) ** gamma * right.log()
    if weighted:
        expected = expected * weight[target][:, None]
    torch.testing.assert_close(loss, expected, **BOUND)
    torch.testing.assert_close(*(torch.autograd.grad(each.sum(), logits)[0] for each in (loss, expected)), **BOUND)


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('gamma', [2.0, 1.5])
def test_softmax_focal_loss(weighted, gamma):
    from mmcv.ops import softmax_focal_loss

    logits, target = random_tensor(5, 4, low=-5, high=5), torch.tensor([0, 1, 2, 3, -1])
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64) if weighted else None
    loss = softmax_focal_loss(logits, target, gamma, 0.25, weight, 'sum')
    right = logits[:4].softmax(1)[range(4), target[:4]]
    expected = (-0.25 * (1 - right) ** gamma * right.log() * (weight if weighted else 1)).sum()
    torch.testing.assert_close(loss, expected, **BOUND)
    torch.testing.assert_close(*(torch.autograd.grad(each, logits)[0] for each in (loss, expected)), **BOUND)


def test_focal_losses_stay_finite_at_certainty():
    from mmcv.ops import sigmoid_focal_loss

    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([1]))
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all() and loss > 10


@pytest.mark.parametrize('groups, scale, kernel', [(1, 2, 5), (2, 2, 3), (3, 1, 1)])
@pytest.mark.parametrize('function', ['carafe', 'carafe_naive'])
def test_carafe(function, groups, scale, kernel):
    import mmcv.ops

    features, masks = random_tensor(2, 6, 4, 5), random_tensor(2, groups * kernel**2, 4 * scale, 5 * scale, seed=1)
    output = getattr(mmcv.ops, function)(features, masks, kernel, groups, scale)
    windows = F.unfold(features, kernel, padding=kernel // 2).view(2, groups, 6 // groups, kernel**2, 4, 5)
    windows = windows.repeat_interleave(scale, 4).repeat_interleave(scale, 5)
    expected = (windows * masks.view(2, groups, 1, kernel**2, 4 * scale, 5 * scale)).sum(3).flatten(1, 2)
    torch.testing.assert_close(output, expected, **BOUND)
    if function == 'carafe_naive':
        return  # mmcv's function asks for a GPU when it goes back; the operator is the one below
    sent = random_tensor(*output.shape, seed=2).detach()
    for ours, theirs in zip(
        *(torch.autograd.grad(each, (features, masks), sent) for each in (output, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, **BOUND)


@pytest.mark.filterwarnings('ignore:This overload of addmm is deprecated')
@pytest.mark.parametrize('kernel, padding', [(3, 1), (3, 0), ((1, 5), (0, 2))])
def test_masked_conv(kernel, padding):
    from mmcv.ops import MaskedConv2d

    conv, input = MaskedConv2d(3, 4, kernel, padding=padding).double(), random_tensor(1, 3, 6, 7).detach()
    dense = conv(input)
    mask = torch.zeros(1, 6, 7)
    mask[0, :4:2, :5] = 1
    covered = mask[:, None, : dense.shape[2], : dense.shape[3]]
    torch.testing.assert_close(conv(input, mask), dense * covered, **BOUND)


def attend(value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    count, _, heads, channels = value.shape
    output = value.new_zeros(count, locations.shape[1], heads, channels)
    starts = np.cumsum([0, *(height * width for height, width in shapes)])
    for image, query, head, level, point in np.ndindex(*weights.shape):
        height, width = shapes[level]
        feature = value[image, starts[level] : starts[level + 1], head].T.reshape(channels, height, width)
        x, y = locations[image, query, head, level, point].tolist()
        sample = bilinear(feature, y * height - 0.5, x * width - 0.5, border=False)
        output[image, query, head] += weights[image, query, head, level, point] * sample
    return output.flatten(2)


def test_ms_deform_attn():
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    shapes = [(3, 4), (2, 2)]
    value, weights = random_tensor(2, 16, 2, 3), random_tensor(2, 5, 2, 2, 3, seed=1)
    locations = random_tensor(2, 5, 2, 2, 3, 2, seed=2, low=-0.2, high=1.2)

    def run(value, locations, weights):
        return MultiScaleDeformableAttnFunction.apply(
            value, torch.tensor(shapes), torch.tensor([0, 12]), locations, weights, 64
        )

    output, expected = run(value, locations, weights), attend(value, shapes, locations, weights)
    torch.testing.assert_close(output, expected, **BOUND)
    sent = random_tensor(*output.shape, seed=3).detach()
    for ours, theirs in zip(
        *(torch.autograd.grad(each, (value, weights), sent, retain_graph=True) for each in (output, expected)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, **BOUND)
    assert torch.autograd.gradcheck(lambda places: run(value.detach(), places, weights.detach()), locations)


def test_sync_bn():
    from mmcv.ops.sync_bn import SyncBatchNormFunction

    own, torchs = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    with torch.no_grad():
        for norm in (own, torchs):
            norm.weight.copy_(torch.tensor([0.5, -1.0, 2.0]))
            norm.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    results = []
    for norm in (own, torchs):
        input = random_tensor(4, 3, 5, 6, low=1, high=3).detach().float().requires_grad_()
        output = (
            norm(input)
            if norm is torchs
            else SyncBatchNormFunction.apply(
                input,
                norm.running_mean,
                norm.running_var,
                norm.weight,
                norm.bias,
                norm.momentum,
                norm.eps,
                None,
                1,
                'default',
            )
        )
        (output * random_tensor(*output.shape, seed=1).detach().float()).sum().backward()
        results.append([output, input.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_line_nms():
    """Lanes side by side: of each pair that is close on the heights that both cover, the worse one goes."""
    if not hasattr(importlib.import_module('mmcv.ops'), 'line_nms'):
        pytest.skip('this mmcv has no line_nms')
    from mmcv.ops import line_nms

    lanes = torch.zeros(5, 77)
    lanes[:, 4] = torch.tensor([72.0, 72, 72, 30, 30])  # points
    lanes[:, 2] = torch.tensor([0, 0, 0, 0, 41 / 71])  # where they start
    lanes[:, 5:] = torch.tensor([100.0, 104, 300, 302, 302])[:, None]
    scores = torch.tensor([0.5, 0.9, 0.6, 0.8, 0.7])
    keep, count, parents = line_nms(lanes, scores, overlap=5.0, top_k=4)
    assert keep[:count].tolist() == [1, 3, 4]
    assert keep.tolist()[int(count) :] == [0, 0]
    assert parents.tolist() == [1, 1, 3, 2, 3]
    assert line_nms(lanes, scores, overlap=5.0, top_k=2)[1] == 2
