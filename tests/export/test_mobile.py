"""The runtimes of phones compute what the trained network does; each is skipped where its packages are absent."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from repnext_mm.apis import load_config
from repnext_mm.cli import main
from repnext_mm.errors import UserError
from repnext_mm.export import (
    SUFFIXES,
    choose_form,
    evaluate_file,
    export_model,
    export_part,
    load_part,
    mobile,
    open_exported,
)
from repnext_mm.export.formats import PACKAGES, check_format
from repnext_mm.export.graphs import IMAGENET, Normalized
from repnext_mm.export.mobile import ONE_SIZE, TOLERANCES, TORCH_VERSIONS, check_mobile
from repnext_mm.export.openers import BESIDE, beside
from repnext_mm.export.predict import open_file, predict, write_image
from repnext_mm.reparam import fuse
from tests.conftest import randomize, worst_error
from tests.export.networks import DIGITS, tiny
from tests.export.test_parts import CLASSIFIER, CONFIGS, SMALL_SEGMENTOR

FORMATS = list(TOLERANCES)
SHAPE = (1, 3, 64, 96)
CLOSE = {'ncnn': 5e-4, 'mnn': 5e-4, 'executorch': 1e-6, 'litert': 1e-6, 'coreai': 1e-6}  # what small networks keep

pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::FutureWarning', 'ignore::UserWarning')


@pytest.fixture
def here():
    """Skips a format whose packages are absent."""

    def needs(format: str) -> None:
        try:
            check_format(format)
        except UserError as error:
            pytest.skip(str(error))

    return needs


@pytest.mark.parametrize('format', FORMATS)
@torch.no_grad()
def test_backbone_in_its_own_runtime(format, here, tmp_path):
    here(format)
    network = tiny()
    path = tmp_path / f'net{SUFFIXES[format][0]}'
    fused, dynamic = fuse(network)[0], format not in ONE_SIZE
    report = export_model(fused, path, format=format, shape=SHAPE, dynamic=dynamic, reference=network)
    assert {file.name for file in tmp_path.iterdir()} == (
        {'net.ncnn.param', 'net.ncnn.bin'} if format == 'ncnn' else {path.name}
    )
    assert report.size_bytes == sum(file.stat().st_size for file in tmp_path.rglob('*') if file.is_file())
    assert list(report.errors) == ['output_0', 'output_1', 'output_2', 'output_3']
    assert 0 < max(report.errors.values()) <= CLOSE[format]
    assert report.checked_in.replace(' ', '').lower() == format
    run = open_exported(path, format=format, threads=1)
    image = torch.randn(1, 3, 41, 75) if dynamic else torch.randn(SHAPE)
    first = run(image)
    run(torch.randn_like(image))  # what was returned stays as it is
    assert max(map(worst_error, first, network(image))) <= CLOSE[format]


@pytest.mark.parametrize('format', FORMATS)
@torch.no_grad()
def test_pixels_to_the_scores_of_a_classifier(format, here, tmp_path):
    here(format)
    (tmp_path / 'cls.py').write_text(CLASSIFIER)
    classifier = randomize(load_part(tmp_path / 'cls.py').network)
    torch.save({'state_dict': classifier.state_dict()}, tmp_path / 'cls.pth')
    path = tmp_path / f'cls{SUFFIXES[format][0]}'
    done = export_part(
        tmp_path / 'cls.py',
        path,
        checkpoint=str(tmp_path / 'cls.pth'),
        normalize=True,
        shape=(1, 3, 64, 64),
        dynamic=False,
    )
    assert list(done.export.errors) == ['scores']
    pixels = torch.rand(1, 3, 64, 64) * 255
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ([123.0, 117.0, 104.0], [58.0, 57.0, 56.0]))
    (scores,) = open_exported(path, format=format)(pixels)
    assert scores.shape == (1, 5)
    assert worst_error(scores, classifier((pixels - mean) / std)) <= CLOSE[format]


@pytest.mark.parametrize('format', ['torchscript', *FORMATS])
def test_a_file_predicts_and_has_a_metric(format, here, classifier, tmp_path, capsys):
    here(format)
    _, options, checkpoint = classifier
    path = tmp_path / f'cls{SUFFIXES[format][0]}'
    given = dict(checkpoint=checkpoint, options=options, shape=(1, 3, 32, 32), dynamic=False, normalize=True)
    report = export_part(DIGITS, path, data=DIGITS, images=24, **given).export
    assert report.accuracy.images == 24 and report.accuracy.drop <= 0.001
    assert beside(path).is_file() == (format in BESIDE)
    assert evaluate_file(path, DIGITS, images=24, options=options) == report.accuracy.exported
    exported = open_file(path, threads=1)
    assert exported.about['size'] == [32, 32]
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    found = predict(exported, image)
    with torch.no_grad():
        batch = {'inputs': [torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).copy())]}
        expected = load_part(DIGITS, checkpoint=checkpoint, options=options).network.test_step(batch)[0].pred_score
    assert np.abs(found.scores - expected.numpy()).max() < 1e-3
    write_image(tmp_path / 'image.png', image)
    main(['predict', str(path), str(tmp_path / 'image.png'), '--out-dir', str(tmp_path / 'drawn'), '--streams', '2'])
    assert f'digit {found.scores.argmax()} {found.scores.max():.3f}' in capsys.readouterr().out
    load_config(DIGITS, options=options).dump(tmp_path / 'digits.py')
    main(['test', str(path), str(tmp_path / 'digits.py'), '--images', '24'])
    assert f'accuracy/top1 {report.accuracy.exported["accuracy/top1"]:.4f}' in capsys.readouterr().out
    with pytest.raises(UserError, match='the image is 16x32 after the steps of the test pipeline, and the file'):
        predict(exported, image[:16])
    if format == 'torchscript':
        with pytest.raises(UserError, match='the image is 32x32 after the steps of the test pipeline, and the file'):
            export_part(DIGITS, path, data=DIGITS, images=2, **{**given, 'shape': (1, 3, 64, 64)})


def test_a_backbone_leaves_nothing_of_an_earlier_file(here, tmp_path):
    here('mnn')
    path = tmp_path / 'net.mnn'
    beside(path).write_text('{"task": "classification"}')
    export_model(fuse(tiny())[0], path, format='mnn', shape=SHAPE)
    assert [file.name for file in tmp_path.iterdir()] == ['net.mnn']


@pytest.mark.slow
@pytest.mark.parametrize('format', FORMATS)
@torch.no_grad()
def test_segmentor_logits(format, here, tmp_path):
    here(format)
    path = tmp_path / f'seg{SUFFIXES[format][0]}'
    config = CONFIGS / 'semantic_fpn_repnext_m0_digits.py'
    segmentor = randomize(load_part(config, options=SMALL_SEGMENTOR).network)
    torch.save({'state_dict': segmentor.state_dict()}, tmp_path / 'seg.pth')
    done = export_part(
        config,
        path,
        checkpoint=str(tmp_path / 'seg.pth'),
        options=SMALL_SEGMENTOR,
        shape=(1, 3, 64, 96),
        dynamic=False,
    )
    assert list(done.export.errors) == ['logits']
    assert max(done.export.errors.values()) <= 2 * CLOSE[format]  # more layers


def test_mnn_takes_batches(here, tmp_path):
    here('mnn')
    network = tiny(out_indices=(3,))
    path = tmp_path / 'net.mnn'
    export_model(fuse(network)[0], path, format='mnn', shape=SHAPE)
    image = torch.randn(3, 3, 33, 75)
    (output,) = open_exported(path, format='mnn')(image)
    assert worst_error(output, network(image)[0].detach()) <= TOLERANCES['mnn']


def test_an_earlier_ncnn_file_is_replaced_with_its_weights(here, tmp_path):
    here('ncnn')
    path, pixels = tmp_path / 'net.ncnn.param', torch.rand(1, 3, 64, 96) * 255
    for _ in range(2):
        network = tiny(out_indices=(3,))
        graph = Normalized(fuse(network)[0], IMAGENET)
        report = export_model(graph, path, format='ncnn', shape=SHAPE, reference=Normalized(network, IMAGENET))
    assert report.replaced
    (output,) = open_exported(path, format='ncnn')(pixels)
    assert worst_error(output, graph(pixels)[0].detach()) <= TOLERANCES['ncnn']
    with pytest.raises(UserError, match='ncnn takes one image at a time, not 2'):
        open_exported(path, format='ncnn')(pixels.repeat(2, 1, 1, 1))


@pytest.mark.parametrize(
    ('format', 'given', 'words'),
    [
        ('ncnn', dict(form='dense'), "form 'dense' is slower, or inexact, .*: 'ncnn' takes form 'default', omit it"),
        ('mnn', dict(form={'stages.0': 'half'}), "'mnn' takes form 'default'"),
        ('litert', dict(form='auto'), "'litert' takes form 'default'"),
        ('litert', {}, r"'litert' has one input size: ask for fixed sizes \(--static\)"),
        ('executorch', {}, "'executorch' has one input size"),
        ('ncnn', dict(batch=2), "'ncnn' takes one image at a time, not 2"),
        ('mnn', dict(detects=True), r"'mnn' has no operators for whole detectors: export the backbone"),
    ],
)
def test_what_they_do_not_take(format, given, words):
    with pytest.raises(UserError, match=words):
        check_mobile(format, **given)
    check_mobile('onnx', **given)


@pytest.mark.parametrize('format', FORMATS)
def test_what_is_missing(format, monkeypatch):
    monkeypatch.setattr(mobile, 'TORCH_VERSIONS', {})
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(
        UserError, match=rf"needs {', '.join(PACKAGES[format])}, .*pip install 'repnext_mm\[{format}\]'"
    ):
        check_format(format)


@pytest.mark.parametrize('format', list(TORCH_VERSIONS))
@pytest.mark.parametrize('version', ['2.1.2', '2.15.0+cpu'])
def test_another_torch_is_named(format, version, monkeypatch):
    monkeypatch.setattr(torch, '__version__', version)
    with pytest.raises(
        UserError, match=rf"'{format}' needs torch 2\..* and this is {version.split('+')[0]}.*: make an"
    ):
        check_format(format)


def test_a_whole_detector_and_the_choice_of_a_form_are_refused(here, tmp_path):
    here('ncnn')
    with pytest.raises(UserError, match='no operators for whole detectors'):
        export_model(tiny(), tmp_path / 'det.ncnn.param', format='ncnn', shape=SHAPE, batched=False)
    part = load_part('m0')
    with pytest.raises(UserError, match="'ncnn' takes form 'default'"):
        choose_form(part, format='ncnn', shape=SHAPE)
