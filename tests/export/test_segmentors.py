"""Every kind of head of mmseg: logits of the model's own whole inference, at any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from repnext_mm.export import export_part, load_part
from repnext_mm.export.graphs import AdaptiveAverage
from repnext_mm.export.predict import open_file, predict
from tests.conftest import randomize, worst_error
from tests.export.networks import TINY

CLASSES, WIDTH = 4, 16
CHANNELS = list(TINY['embed_dims'])
HEADS = {
    'uper': dict(type='UPerHead', in_channels=CHANNELS, in_index=[0, 1, 2, 3], pool_scales=(1, 2, 3, 6)),
    'psp': dict(type='PSPHead', in_channels=CHANNELS[3], in_index=3, pool_scales=(1, 2, 3, 6)),
    'segformer': dict(type='SegformerHead', in_channels=CHANNELS, in_index=[0, 1, 2, 3]),
    'deeplabv3plus': dict(
        type='DepthwiseSeparableASPPHead',
        in_channels=CHANNELS[3],
        in_index=3,
        dilations=(1, 2),
        c1_in_channels=CHANNELS[0],
        c1_channels=8,
    ),
    'ocr': [
        dict(type='FCNHead', in_channels=CHANNELS, in_index=[0, 1, 2, 3], input_transform='resize_concat', num_convs=1),
        dict(
            type='OCRHead', in_channels=CHANNELS, in_index=[0, 1, 2, 3], input_transform='resize_concat', ocr_channels=8
        ),
    ],
}
COMMON = dict(channels=WIDTH, num_classes=CLASSES, norm_cfg=dict(type='BN'), align_corners=False)


def written(name, folder):
    heads = HEADS[name]
    head = [each | COMMON for each in heads] if isinstance(heads, list) else heads | COMMON
    if name == 'ocr':
        head[0] |= dict(in_channels=sum(CHANNELS), channels=sum(CHANNELS))
        head[0]['in_channels'] = CHANNELS
    model = dict(
        type='CascadeEncoderDecoder' if isinstance(heads, list) else 'EncoderDecoder',
        data_preprocessor=dict(
            type='SegDataPreProcessor', mean=[123.0, 117.0, 104.0], std=[58.0, 57.0, 56.0], bgr_to_rgb=True
        ),
        backbone=dict(type='RepNeXt', arch=TINY),
        decode_head=head,
        test_cfg=dict(mode='whole'),
        **(dict(num_stages=2) if isinstance(heads, list) else {}),
    )
    (folder / 'seg.py').write_text(f"default_scope = 'mmseg'\nmodel = {model!r}\n")
    network = randomize(load_part(folder / 'seg.py').network)
    torch.save({'state_dict': network.state_dict()}, folder / 'seg.pth')
    return folder / 'seg.py', str(folder / 'seg.pth'), network


@pytest.mark.parametrize('name', sorted(HEADS))
@torch.no_grad()
def test_logits_are_those_of_whole_inference(name, tmp_path):
    config, checkpoint, network = written(name, tmp_path)
    done = export_part(
        config, tmp_path / 'seg.onnx', checkpoint=checkpoint, normalize=True, shape=(1, 3, 96, 128), opset=17
    )
    assert list(done.export.errors) == ['logits']
    exported = open_file(tmp_path / 'seg.onnx')
    pixels = np.random.default_rng(0).integers(0, 256, (70, 101, 3), np.uint8)
    (logits,) = exported.run(pixels.transpose(2, 0, 1)[None].astype(np.float32))
    image = (torch.from_numpy(pixels).float() - torch.tensor([123.0, 117, 104])) / torch.tensor([58.0, 57, 56])
    expected = network.encode_decode(image.permute(2, 0, 1)[None], [{'img_shape': (70, 101), 'pad_shape': (70, 101)}])
    assert worst_error(torch.from_numpy(logits), expected) < 1e-4
    found = predict(exported, pixels).classes
    assert (found != expected[0].argmax(0).numpy()).mean() < 1e-3


@pytest.mark.parametrize('size', [(7, 12), (3, 3), (31, 2)])
def test_adaptive_average_is_torchs(size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    for bins in ((1, 1), (2, 3), (6, 6)):
        expected = torch.nn.functional.adaptive_avg_pool2d(x, bins)
        torch.testing.assert_close(AdaptiveAverage(bins)(x), expected, rtol=0, atol=1e-14)
