"""Exported files against PyTorch: the same image, the same answer, and nothing timed that finds something else."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from repnext_mm.errors import UserError
from repnext_mm.export.predict import Prediction
from repnext_mm.lab.bench.session import measure_repeatedly
from repnext_mm.lab.bench.tables import whole_file_tables
from repnext_mm.lab.bench.whole_files import EAGER, agreement, measure_whole_files
from tests.tools.running import ROOT

CONFIG = ROOT / 'configs/repnext_m0_digits_cls.py'
QUICK = dict(rounds=2, warmup_rounds=0, warmup_s=0)


def boxes(*corners, scores, labels):
    return Prediction(boxes=np.float32(corners).reshape(-1, 4), scores=np.float32(scores), labels=np.array(labels))


ONE = boxes([0, 0, 10, 10], scores=[0.9], labels=[3])


@pytest.mark.parametrize(
    ('found', 'share'),
    [
        (ONE, 1.0),
        (boxes([0, 0, 10, 11], [50, 50, 60, 60], scores=[0.5, 0.2], labels=[3, 3]), 1.0),  # the other is not sure
        (boxes([0, 0, 10, 11], [50, 50, 60, 60], scores=[0.5, 0.4], labels=[3, 3]), 0.5),
        (boxes([0, 0, 10, 11], scores=[0.2], labels=[3]), 1.0),  # found, if not surely
        (boxes([0, 0, 10, 11], scores=[0.1], labels=[3]), 0.0),
        (boxes([0, 0, 10, 10], scores=[0.9], labels=[4]), 0.0),
        (boxes([5, 5, 15, 15], scores=[0.9], labels=[3]), 0.0),
        (boxes(scores=[], labels=[]), 0.0),
        (Prediction(scores=np.float32([0.1])), 0.0),
    ],
)
def test_agreement_of_detections(found, share):
    assert agreement(found, ONE) == share


def test_agreement_of_nothing_with_nothing():
    nothing = boxes(scores=[], labels=[])
    assert agreement(nothing, nothing) == 1.0


def test_agreement_of_segmentations_and_classes():
    classes, one_wrong = np.array([[0, 1], [2, 3]]), np.array([[0, 1], [2, 4]])
    assert agreement(Prediction(classes=classes), Prediction(classes=one_wrong)) == 0.75
    assert agreement(Prediction(classes=classes[:1]), Prediction(classes=classes)) == 0.0
    scores = np.float32([0.1, 0.7, 0.2])
    assert agreement(Prediction(scores=scores * 2), Prediction(scores=scores)) == 1.0
    assert agreement(Prediction(scores=scores[::-1]), Prediction(scores=scores)) == 1.0
    assert agreement(Prediction(scores=np.roll(scores, 1)), Prediction(scores=scores)) == 0.0


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    from repnext_mm.apis.build import build_model
    from repnext_mm.apis.config import load_config
    from repnext_mm.export import export_part

    folder = tmp_path_factory.mktemp('files')
    torch.manual_seed(0)
    model = build_model(load_config(CONFIG))
    weights = str(folder / 'weights.pth')
    torch.save({'state_dict': model.state_dict()}, weights)
    with torch.no_grad():
        model.head.head.linear.weight.neg_()
        model.head.head.linear.bias.neg_()
    torch.save({'state_dict': model.state_dict()}, folder / 'other.pth')
    export_part(CONFIG, folder / 'net.onnx', checkpoint=weights, shape=(1, 3, 32, 32), dynamic=False)
    cv2.imwrite(str(folder / 'image.png'), np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    return folder


def test_file_against_pytorch(exported, tmp_path):
    measured = []

    def measure(**how):
        given = {**how, **QUICK}
        measured.append(
            measure_whole_files(
                [exported / 'net.onnx'], CONFIG, exported / 'weights.pth', image=exported / 'image.png', **given
            )
        )
        return measured[-1]

    table = measure_repeatedly(
        [measure],
        tmp_path / 'record.json',
        kind='whole_files',
        repeats=1,
        command='x',
        device='cpu',
        rounds=2,
        warmup_s=0,
        warmup_rounds=0,
        threads=1,
        tf32=False,
        progress=lambda steps: lambda: None,
    )
    (result,) = measured
    assert [way.name for way in result.ways] == [EAGER, 'net.onnx']
    assert [way.agreement for way in result.ways] == [1.0, 1.0]
    assert all(way.time.n == 2 and way.time.median_ms > 0 and way.found is None for way in result.ways)
    assert result.ways[1].size_bytes == (exported / 'net.onnx').stat().st_size
    assert (result.trained, result.image_shape) == (True, (32, 32))
    assert table == whole_file_tables([result])
    assert 'net.onnx' in (tmp_path / 'record.md').read_text()


def test_file_of_other_weights_is_not_timed(exported):
    with pytest.raises(UserError, match='agrees with the model on 0.00'):
        measure_whole_files([exported / 'net.onnx'], CONFIG, exported / 'other.pth', image=exported / 'image.png')


def test_file_of_another_size_is_not_timed(exported):
    pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=64), dict(type='PackInputs')]
    with pytest.raises(UserError, match=r'sizes images by \[\], and this config by .*\[64, 64\].*same --cfg-options'):
        measure_whole_files(
            [exported / 'net.onnx'],
            CONFIG,
            exported / 'weights.pth',
            options={'test_dataloader.dataset.pipeline': pipeline},
            **QUICK,
        )


def test_files_run_on_the_cpu():
    with pytest.raises(UserError, match='run on the CPU here, not on cuda'):
        measure_whole_files(['net.onnx'], CONFIG, device='cuda')
    with pytest.raises(UserError, match='rounds=0'):
        measure_whole_files(['net.onnx'], CONFIG, rounds=0)
