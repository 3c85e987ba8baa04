"""OpenVINO files that compute in bfloat16 where the processor multiplies it, but for the coordinates of boxes.

bfloat16 has eight significant bits: between 128 and 256 pixels, a coordinate is a whole pixel. OpenVINO itself keeps
what follows the last convolutions in float32. That is enough for detectors of one stage. Where boxes are cut out for
convolutions to come (RoIAlign), it makes them in bfloat16, and masks are lost by that. RoIAlign itself takes boxes in
float32 and features in bfloat16; marked like them, it would take another layout, and ten times as long.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

from repnext_mm.errors import UserError
from repnext_mm.export.openers import KEY, multiplies_bfloat16

FEATURES = ('Convolution', 'ConvolutionBackpropData', 'GroupConvolution', 'MatMul')
"""Layers whose outputs are features or offsets, which bfloat16 may hold."""
CUTS = 'ROIAlign'
BOXES = '1'  # of its inputs
KEPT = {'name': 'precise', 'version': '0'}
"""What OpenVINO calls a layer that is to stay in float32."""


def check_bfloat16(format: str, *, whole: bool, detects: bool, judged: bool) -> None:
    """A file can be marked, and what bfloat16 costs can be found out here.

    Raises:
        UserError: it cannot.
    """
    if format != 'openvino':
        raise UserError(f'bf16 is for OpenVINO, and the format is {format!r}: let the name end with .xml, or omit it')
    if not whole:
        raise UserError(
            'bf16 is for whole models, which say how they are to be run: omit it, and set INFERENCE_PRECISION_HINT '
            'where the file is opened'
        )
    if not multiplies_bfloat16():
        raise UserError(
            'this processor does not multiply bfloat16, so that its accuracy cannot be measured here: export with bf16 '
            'on one that does (AMX, AVX-512 BF16, or a recent Arm), or omit it'
        )
    if detects and not judged:
        raise UserError('bf16 moves boxes a little, and only a metric tells how much that costs: give a config as data')


def run_in_bfloat16(path: Path) -> int:
    """Mark an OpenVINO file in place; returns how many layers stay in float32: all that makes boxes out of features."""
    tree = ElementTree.parse(path)
    layers = {layer.get('id', ''): layer for layer in tree.iterfind('layers/layer')}
    sources: dict[str, dict[str, str]] = defaultdict(dict)  # of a layer, by its port
    for edge in tree.iterfind('edges/edge'):
        sources[edge.get('to-layer', '')][edge.get('to-port', '')] = edge.get('from-layer', '')
    kept: set[str] = set()
    follow = [sources[name][BOXES] for name, layer in layers.items() if layer.get('type') == CUTS]
    while follow:
        name = follow.pop()
        if name not in kept and layers[name].get('type') not in (*FEATURES, CUTS, 'Const', 'Parameter'):
            kept.add(name)
            follow += sources[name].values()
    for name in kept:
        info = layers[name].find('rt_info')
        ElementTree.SubElement(
            ElementTree.SubElement(layers[name], 'rt_info') if info is None else info, 'attribute', KEPT
        )
    known = tree.find(f'rt_info/{KEY}')
    assert known is not None
    known.set('value', json.dumps({**json.loads(known.get('value', '{}')), 'precision': 'bfloat16'}))
    tree.write(path)
    return len(kept)
