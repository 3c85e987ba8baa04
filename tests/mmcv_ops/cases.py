"""What mmcv's compiled operators and ours are compared on: inputs, the calls that mmcv makes, and the tolerances.

Inputs come from `RandomState.random_sample`, whose stream is frozen and exact on every machine.
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Results = dict[str, Tensor]

# Largest difference from the compiled operators on a CPU, relative to the largest value; indices must be equal always.
# Measured on x86-64, where neither side fuses multiplications with additions; float16 is rounded at other steps.
TOLERANCES = {
    'nms': 0.0,
    'softnms': 0.0,
    'softnms gaussian': 2e-7,
    'nms_match': 0.0,
    'bbox_overlaps': 0.0,
    'box_iou_rotated': 1e-5,
    'nms_rotated': 0.0,
    'roi_align': 0.0,
    'roi_align max': 0.0,
    'roi_align max backward': 2e-7,
    'deform_conv': 1e-6,
    'modulated_deform_conv': 1e-6,
    'psamask': 0.0,
}
HALF = 5e-3
EXACT_HERE = platform.machine() in ('x86_64', 'AMD64')


class Case(NamedTuple):
    """One call, or a forward and its backward; ``run(ext, seed)`` takes any module with mmcv's operators."""

    name: str
    tolerance: str
    run: Callable[[Any, int], Results]

    @property
    def stored(self) -> bool:
        """The order of equal scores is the processor's, by mmcv's choice of sort: compared live, not with a file."""
        return not (self.name.startswith('nms') and 'kind=ties' in self.name) and 'nms_with_scores' not in self.name


CASES: list[Case] = []


def _short(value: Any) -> str:
    return str(value).removeprefix('torch.').replace(' ', '')


def case(tolerance: str, **options: list[Any]) -> Callable[[Callable[..., Results]], Callable[..., Results]]:
    """Register a function (ext, random, one of each option) -> results, for all combinations of the options."""

    def register(function: Callable[..., Results]) -> Callable[..., Results]:
        for values in itertools.product(*options.values()):
            chosen = dict(zip(options, values, strict=True))
            name = '-'.join([function.__name__, *(f'{key}={_short(value)}' for key, value in chosen.items())])

            def run(ext: Any, seed: int, chosen: dict[str, Any] = chosen) -> Results:
                return function(ext, np.random.RandomState(seed), **chosen)

            CASES.append(Case(name, tolerance, run))
        return function

    return register


def tolerance_of(case: Case, key: str, reference: Tensor) -> float:
    if not reference.is_floating_point():
        return 0.0
    if reference.dtype == torch.float16 and 'align' not in case.tolerance:
        return HALF
    if reference.dtype == torch.float64:
        return 1e-14
    limit = TOLERANCES.get(f'{case.tolerance} backward' if key.startswith('grad') else '', TOLERANCES[case.tolerance])
    return limit if EXACT_HERE else max(limit, 1e-6)


def uniform(
    random: np.random.RandomState, *shape: int, low: float = -1, high: float = 1, dtype: torch.dtype = torch.float32
) -> Tensor:
    return torch.from_numpy(low + (high - low) * random.random_sample(shape)).to(dtype)


def boxes_of(random: np.random.RandomState, kind: str) -> tuple[Tensor, Tensor]:
    """Boxes and scores: floats; small whole numbers, so that many overlaps and scores are equal; or without area."""
    count = {'empty': 0, 'one': 1}.get(kind, 60)
    corner = uniform(random, count, 2, low=0, high=40)
    boxes = torch.cat([corner, corner + uniform(random, count, 2, low=2, high=30)], 1)
    scores = uniform(random, count, low=0.05, high=1)
    if kind == 'ties':
        boxes, scores = (boxes / 5).round(), (scores * 8).round() / 8
    if kind == 'degenerate':
        boxes[::3, 2] = boxes[::3, 0]
        boxes[1::3] = boxes[1::3, [2, 3, 0, 1]]
        boxes[5::7] = boxes[5]
    if kind == 'strided':
        boxes, scores = torch.cat([boxes, boxes], 1)[:, 2:6], scores.repeat_interleave(2)[::2]
    return boxes, scores


KINDS = ['floats', 'ties', 'degenerate', 'strided', 'one', 'empty']


@case('nms', kind=KINDS, offset=[0, 1], threshold=[0.3, 0.6])
def nms(ext, random, kind, offset, threshold):
    boxes, scores = boxes_of(random, kind)
    return {'kept': ext.nms(boxes, scores, iou_threshold=threshold, offset=offset)}


@case('nms', dtype=[torch.float64, torch.float16, torch.int64])
def nms_with_scores(ext, random, dtype):
    boxes, scores = boxes_of(random, 'ties')
    return {'kept': ext.nms(boxes, (scores * 8).to(dtype), iou_threshold=0.5, offset=0)}


def softnms(ext, random, kind, offset, threshold, min_score, method):
    boxes, scores = boxes_of(random, kind)
    dets = torch.zeros(len(boxes), 5)
    kept = ext.softnms(
        boxes, scores, dets, iou_threshold=threshold, sigma=0.5, min_score=min_score, method=method, offset=offset
    )
    return {'kept': kept, 'dets': dets[: len(kept)]}


@case('softnms', kind=KINDS, offset=[0, 1], min_score=[1e-3, 0.3], method=[0, 1])
def softnms_linear(ext, random, **options):
    return softnms(ext, random, threshold=0.4, **options)


@case('softnms gaussian', kind=KINDS, offset=[0, 1], min_score=[1e-3, 0.3])
def softnms_gaussian(ext, random, **options):
    return softnms(ext, random, threshold=0.4, method=2, **options)


@case('nms_match', kind=['floats', 'ties', 'degenerate', 'strided', 'one', 'empty'], threshold=[0.3, 0.6])
def nms_match(ext, random, kind, threshold):
    boxes, scores = boxes_of(random, kind)
    groups = ext.nms_match(torch.cat([boxes, scores[:, None]], 1), iou_threshold=threshold)
    return {
        'members': torch.tensor([*itertools.chain(*groups)], dtype=torch.long),
        'sizes': torch.tensor([len(group) for group in groups], dtype=torch.long),
    }


@case(
    'bbox_overlaps',
    kind=['floats', 'ties', 'degenerate'],
    mode=[0, 1],
    aligned=[False, True],
    offset=[0, 1],
    dtype=[torch.float32, torch.float64],
)
def bbox_overlaps(ext, random, kind, mode, aligned, offset, dtype):
    first, second = boxes_of(random, kind)[0].to(dtype)[:20], boxes_of(random, kind)[0].to(dtype)[:20]
    ious = first.new_zeros(20 if aligned else (20, 20))
    ext.bbox_overlaps(first, second, ious, mode=mode, aligned=aligned, offset=offset)
    return {'ious': ious}


def rotated_boxes_of(random: np.random.RandomState, kind: str, count: int = 24) -> Tensor:
    boxes = torch.cat(
        [
            uniform(random, count, 2, low=0, high=30),
            uniform(random, count, 2, low=1, high=20),
            uniform(random, count, 1, low=-4, high=4),
        ],
        1,
    )
    if kind == 'upright':
        boxes = boxes.round()
        boxes[:, 4] = 0
    if kind == 'degenerate':
        boxes[::3, 2] = 0
        boxes[1::3] = boxes[1]
    return boxes


@case('box_iou_rotated', kind=['floats', 'upright', 'degenerate'], mode=[0, 1], aligned=[False, True])
def box_iou_rotated(ext, random, kind, mode, aligned):
    first, second = rotated_boxes_of(random, kind), rotated_boxes_of(random, kind)
    ious = first.new_zeros(24 if aligned else 24 * 24)
    ext.box_iou_rotated(first, second, ious, mode_flag=mode, aligned=aligned)
    return {'ious': ious}


@case(
    'nms_rotated',
    kind=['floats', 'upright', 'degenerate'],
    threshold=[0.1, 0.5],
    labels=[False, True],
    dtype=[torch.float32, torch.float64],
)
def nms_rotated(ext, random, kind, threshold, labels, dtype):
    boxes = rotated_boxes_of(random, kind).to(dtype)
    scores = uniform(random, 24, low=0, high=1, dtype=dtype)
    given = torch.arange(24) % 2 if labels else scores.new_empty(0, dtype=torch.int)
    if labels:
        boxes = torch.cat([boxes, given[:, None].to(dtype)], 1)
    order = scores.sort(0, descending=True)[1]
    return {'kept': ext.nms_rotated(boxes, scores, order, boxes[order], given, threshold, labels)}


def rois_of(random: np.random.RandomState, kind: str, dtype: torch.dtype) -> Tensor:
    """RoIs over two maps of 13 x 11 cells at stride 4: in and out of them; without size; or none."""
    count = {'none': 0}.get(kind, 9)
    corner = uniform(random, count, 2, low=-20, high=60)
    rois = torch.cat([torch.arange(count)[:, None] % 2, corner, corner + uniform(random, count, 2, low=0, high=40)], 1)
    if kind == 'without size':
        rois[::2, 3] = rois[::2, 1]
        rois[1::3, 4] = rois[1::3, 2]
    return rois.to(dtype)


ROI_OPTIONS = {'kind': ['boxes', 'without size', 'none'], 'aligned': [False, True], 'sampling_ratio': [0, 2]}


def roi_align(ext, random, kind, aligned, sampling_ratio, dtype, pool_mode, bins):
    features, rois = uniform(random, 2, 3, 13, 11, dtype=dtype), rois_of(random, kind, dtype)
    output = features.new_zeros(len(rois), 3, *bins)
    argmax_y, argmax_x = (output.clone() if pool_mode == 0 else features.new_zeros(0) for _ in 'yx')
    options = {
        'aligned_height': bins[0],
        'aligned_width': bins[1],
        'spatial_scale': 0.25,
        'sampling_ratio': sampling_ratio,
        'pool_mode': pool_mode,
        'aligned': aligned,
    }
    ext.roi_align_forward(features, rois, output, argmax_y, argmax_x, **options)
    grad_output, grad_input = uniform(random, *output.shape, dtype=dtype), torch.zeros_like(features)
    ext.roi_align_backward(grad_output, rois, argmax_y, argmax_x, grad_input, **options)
    found = {'argmax_y': argmax_y, 'argmax_x': argmax_x} if pool_mode == 0 else {}
    return {'output': output, **found, 'grad_input': grad_input}


@case('roi_align', **ROI_OPTIONS, dtype=[torch.float32, torch.float64, torch.float16])
def roi_align_avg(ext, random, **options):
    return roi_align(ext, random, pool_mode=1, bins=(3, 2), **options)


@case('roi_align max', **ROI_OPTIONS, dtype=[torch.float32, torch.float64])
def roi_align_max(ext, random, **options):
    return roi_align(ext, random, pool_mode=0, bins=(3, 2), **options)


CONVOLUTIONS = {  # kernel, stride, padding, dilation, groups, offset groups; (height, width)
    'plain': ((3, 3), (1, 1), (1, 1), (1, 1), 1, 1),
    'uneven': ((1, 3), (2, 1), (0, 2), (1, 2), 1, 2),
    'grouped': ((3, 2), (1, 2), (2, 1), (2, 1), 2, 4),
}
DTYPES = [torch.float32, torch.float64, torch.float16]


def convolution(random, kind, dtype):
    """input, offset, mask, weight, bias, gradient of the output, and the geometry by name."""
    kernel, stride, padding, dilation, groups, offset_groups = CONVOLUTIONS[kind]
    size = [
        (extent + 2 * pad - dil * (side - 1) - 1) // step + 1
        for extent, pad, dil, side, step in zip((7, 6), padding, dilation, kernel, stride, strict=True)
    ]
    taps = offset_groups * kernel[0] * kernel[1]
    tensors = [
        uniform(random, 2, 4, 7, 6, dtype=dtype),
        uniform(random, 2, 2 * taps, *size, low=-3, high=3, dtype=dtype),
        uniform(random, 2, taps, *size, low=0, dtype=dtype),
        uniform(random, 6, 4 // groups, *kernel, dtype=dtype),
        uniform(random, 6, dtype=dtype),
        uniform(random, 2, 6, *size, dtype=dtype),
    ]
    if dtype == torch.float16:  # off the cells, on which the slope jumps and float16 would often land
        tensors[1] = (tensors[1] * 4).round() / 4 + 0.125
    return *tensors, (kernel, stride, padding, dilation, groups, offset_groups)


@case('deform_conv', kind=[*CONVOLUTIONS], dtype=DTYPES)
def deform_conv(ext, random, kind, dtype):
    input, offset, _, weight, _, grad_output, geometry = convolution(random, kind, dtype)
    kernel, stride, padding, dilation, group, deformable_group = geometry
    options = {
        'kW': kernel[1],
        'kH': kernel[0],
        'dW': stride[1],
        'dH': stride[0],
        'padW': padding[1],
        'padH': padding[0],
        'dilationW': dilation[1],
        'dilationH': dilation[0],
        'group': group,
        'deformable_group': deformable_group,
        'im2col_step': 2,
    }
    output, columns, ones = torch.empty_like(grad_output), input.new_empty(0), input.new_empty(0)
    ext.deform_conv_forward(input, weight, offset, output, columns, ones, **options)
    grad_input, grad_offset, grad_weight = (torch.zeros_like(tensor) for tensor in (input, offset, weight))
    ext.deform_conv_backward_input(input, offset, grad_output, grad_input, grad_offset, weight, columns, **options)
    ext.deform_conv_backward_parameters(input, offset, grad_output, grad_weight, columns, ones, scale=1, **options)
    return {'output': output, 'grad_input': grad_input, 'grad_offset': grad_offset, 'grad_weight': grad_weight}


@case('modulated_deform_conv', kind=[*CONVOLUTIONS], with_bias=[False, True], dtype=DTYPES)
def modulated_deform_conv(ext, random, kind, with_bias, dtype):
    input, offset, mask, weight, bias, grad_output, geometry = convolution(random, kind, dtype)
    kernel, stride, padding, dilation, group, deformable_group = geometry
    options = {
        'kernel_h': kernel[0],
        'kernel_w': kernel[1],
        'stride_h': stride[0],
        'stride_w': stride[1],
        'pad_h': padding[0],
        'pad_w': padding[1],
        'dilation_h': dilation[0],
        'dilation_w': dilation[1],
        'group': group,
        'deformable_group': deformable_group,
        'with_bias': with_bias,
    }
    bias = bias if with_bias else input.new_empty(0)
    output, columns, ones = torch.empty_like(grad_output), input.new_empty(0), input.new_empty(0)
    ext.modulated_deform_conv_forward(input, weight, bias, ones, offset, mask, output, columns, **options)
    grads = [torch.zeros_like(tensor) for tensor in (input, weight, bias, offset, mask)]
    ext.modulated_deform_conv_backward(input, weight, bias, ones, offset, mask, columns, *grads, grad_output, **options)
    names = ('grad_input', 'grad_weight', 'grad_bias', 'grad_offset', 'grad_mask')
    return {'output': output, **dict(zip(names, grads, strict=True))}


@case('modulated_deform_conv', larger=[(8, 8), (3, 0)], dtype=[torch.float32, torch.float64])
def modulated_deform_conv_of_large_offsets(ext, random, larger, dtype):
    """mmdet's DyHead gives a level the offsets of the next finer one."""
    input = uniform(random, 2, 4, 8, 7, dtype=dtype)
    size = (8 + larger[0], 7 + larger[1])
    offset, mask = uniform(random, 2, 18, *size, dtype=dtype), uniform(random, 2, 9, *size, dtype=dtype)
    weight, bias = uniform(random, 6, 4, 3, 3, dtype=dtype), uniform(random, 6, dtype=dtype)
    grad_output = uniform(random, 2, 6, 8, 7, dtype=dtype)
    options = dict.fromkeys(
        ['stride_h', 'stride_w', 'pad_h', 'pad_w', 'dilation_h', 'dilation_w', 'group', 'deformable_group'], 1
    )
    options |= {'kernel_h': 3, 'kernel_w': 3, 'with_bias': True}
    output, columns, ones = torch.empty_like(grad_output), input.new_empty(0), input.new_empty(0)
    ext.modulated_deform_conv_forward(input, weight, bias, ones, offset, mask, output, columns, **options)
    grads = [torch.zeros_like(tensor) for tensor in (input, weight, bias, offset, mask)]
    ext.modulated_deform_conv_backward(input, weight, bias, ones, offset, mask, columns, *grads, grad_output, **options)
    names = ('grad_input', 'grad_weight', 'grad_bias', 'grad_offset', 'grad_mask')
    return {'output': output, **dict(zip(names, grads, strict=True))}


@case('psamask', psa_type=[0, 1], mask=[(5, 7), (3, 3), (4, 2)], dtype=[torch.float32, torch.float64])
def psamask(ext, random, psa_type, mask, dtype):
    height, width = 3, 4
    options = {
        'psa_type': psa_type,
        'num_': 2,
        'h_feature': height,
        'w_feature': width,
        'h_mask': mask[0],
        'w_mask': mask[1],
        'half_h_mask': (mask[0] - 1) // 2,
        'half_w_mask': (mask[1] - 1) // 2,
    }
    input = uniform(random, 2, mask[0] * mask[1], height, width, dtype=dtype)
    output = input.new_zeros(2, height * width, height, width)
    ext.psamask_forward(input, output, **options)
    grad_output, grad_input = uniform(random, *output.shape, dtype=dtype), torch.zeros_like(input)
    ext.psamask_backward(grad_output, grad_input, **options)
    return {'output': output, 'grad_input': grad_input}


def difference(value: Tensor, reference: Tensor) -> float:
    """Largest difference relative to the largest value; infinite where shapes, types or the places of NaN differ."""
    if value.shape != reference.shape or value.dtype != reference.dtype:
        return float('inf')
    if not reference.numel():
        return 0.0
    if not reference.is_floating_point():
        return 0.0 if torch.equal(value, reference) else float('inf')
    if not torch.equal(value.isfinite(), reference.isfinite()):
        return float('inf')
    value, reference = value.double().nan_to_num(), reference.double().nan_to_num()
    largest = reference.abs().max().item()
    return (value - reference).abs().max().item() / (largest or 1.0)
