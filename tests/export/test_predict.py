"""predict.py alone: without torch, without any mm package, without the rest of the package."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from repnext_mm.errors import UserError
from repnext_mm.export import export_part, load_part, predict
from tests.export.test_detectors import written

BLOCKED = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'timm', 'repnext_mm')
ALONE = """
import runpy, sys
for name in {blocked!r}:
    sys.modules[name] = None
sys.argv = {argv!r}
sys.path[0] = {folder!r}  # as for a script
runpy.run_path({file!r}, run_name='__main__')
"""


def run_alone(*arguments, cwd, blocked=BLOCKED, expect=0):
    file, argv = predict.__file__, ['predict.py', *map(str, arguments)]
    code = ALONE.format(blocked=blocked, argv=argv, folder=os.path.dirname(file), file=file)
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == expect, result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    """A tiny Mask R-CNN, its file and three images."""
    folder = tmp_path_factory.mktemp('detector')
    torch.manual_seed(0)
    config, checkpoint = written('mask_rcnn', folder)
    export_part(config, folder / 'det.onnx', checkpoint=checkpoint, shape=(1, 3, 96, 128))
    (folder / 'images').mkdir()
    generator = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(generator.integers(0, 256, (50 + number, 60, 3), np.uint8)).save(
            folder / f'images/{number}.png'
        )
    return folder, load_part(config, checkpoint=checkpoint, normalize=None)


@pytest.mark.filterwarnings('ignore:To copy construct:UserWarning:mmdet', 'ignore:torch.meshgrid')
@pytest.mark.parametrize('blocked', [(), ('cv2',)], ids=['opencv', 'pillow'])
def test_the_module_alone_draws_and_writes_coco(blocked, detector, tmp_path):
    folder, _ = detector
    arguments = folder / 'det.onnx', folder / 'images', '--coco', 'found.json', '--threshold', '0.1', '--streams', '2'
    shown = run_alone(*arguments, cwd=tmp_path, blocked=BLOCKED + blocked)
    assert '3/3 images' in shown
    assert sorted(file.name for file in (tmp_path / 'predictions').iterdir()) == ['0.png', '1.png', '2.png']
    drawn = np.array(Image.open(tmp_path / 'predictions/1.png'))
    assert drawn.shape == (51, 60, 3)
    assert (drawn != np.array(Image.open(folder / 'images/1.png'))).any()
    results = json.loads((tmp_path / 'found.json').read_text())
    assert {item['image_id'] for item in results} == {'0.png', '1.png', '2.png'}
    assert all(item['segmentation']['size'][1] == 60 and item['category_id'] in (0, 1, 2) for item in results)
    one = run_alone(folder / 'det.onnx', folder / 'images/0.png', '--threshold', '0.1', '--no-draw', cwd=tmp_path)
    assert ' at ' in one


@pytest.fixture
def video(detector, tmp_path):
    """Five frames of 64x48, Motion JPEG, ten a second."""
    cv2 = pytest.importorskip('cv2')
    path = tmp_path / 'clip.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 10.0, (64, 48))
    generator = np.random.default_rng(0)
    for _ in range(5):
        writer.write(generator.integers(0, 256, (48, 64, 3), np.uint8))
    writer.release()
    return path


@pytest.mark.filterwarnings('ignore:To copy construct:UserWarning:mmdet', 'ignore:torch.meshgrid')
def test_a_video_becomes_a_video_masks_and_coco(detector, video, tmp_path):
    import cv2

    folder, _ = detector
    shown = run_alone(
        *(folder / 'det.onnx', video, '--out', 'found.json', '--masks', 'masks', '--threshold', '0.1'),
        *('--batch-size', '2'),
        cwd=tmp_path,
    )
    assert '5/5 images' in shown
    assert ' a second' in shown
    opened = cv2.VideoCapture(str(tmp_path / 'predictions/clip.avi'))
    assert opened.get(cv2.CAP_PROP_FPS) == 10
    frames = [opened.read()[1] for _ in range(6)]
    assert [None if frame is None else frame.shape for frame in frames] == [(48, 64, 3)] * 5 + [None]
    names = [f'clip_{number:06}' for number in range(5)]
    results = json.loads((tmp_path / 'found.json').read_text())
    assert {item['image_id'] for item in results} == set(names)
    for name in names:
        mask = np.array(Image.open(tmp_path / f'masks/{name}.png'))
        assert mask.shape == (48, 64)
        assert set(np.unique(mask)) <= {0, 1, 2, 3}
    assert any(np.array(Image.open(tmp_path / f'masks/{name}.png')).any() for name in names)


@pytest.mark.filterwarnings('ignore:To copy construct:UserWarning:mmdet', 'ignore:torch.meshgrid')
def test_patterns_and_several_sources(detector, tmp_path):
    folder, _ = detector
    shown = run_alone(folder / 'det.onnx', folder / 'images/[01].png', folder / 'images/2.png', cwd=tmp_path)
    assert '3/3 images' in shown
    assert sorted(file.name for file in (tmp_path / 'predictions').iterdir()) == ['0.png', '1.png', '2.png']


@pytest.mark.filterwarnings('ignore:To copy construct:UserWarning:mmdet', 'ignore:torch.meshgrid')
def test_sources_of_one_name_keep_their_results_apart(detector, video, tmp_path):
    folder, _ = detector
    for name in ('one/0.png', 'two/0.png', 'two/0.jpg', 'two/clip.avi'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(video if name.endswith('avi') else folder / 'images/0.png', tmp_path / name)
    run_alone(
        *(folder / 'det.onnx', 'one/0.png', 'two', 'two/clip.avi', video),
        *('--masks', 'masks', '--out', 'found.json', '--threshold', '0.1'),
        cwd=tmp_path,
    )
    drawn = {file.name for file in (tmp_path / 'predictions').iterdir()}
    assert drawn == {'0.png', '0_2.png', '0.jpg', 'clip.avi', 'clip_2.avi'}
    masks = {file.name for file in (tmp_path / 'masks').iterdir()}
    frames = {f'{name}_{number:06}.png' for name in ('clip', 'clip_2') for number in range(5)}
    assert masks == {'0.png', '0_2.png', '0_3.png', *frames}
    ids = {item['image_id'] for item in json.loads((tmp_path / 'found.json').read_text())}
    assert ids == {'one/0.png', 'two/0.png', '0.jpg', *(frame.removesuffix('.png') for frame in frames)}


@pytest.mark.filterwarnings('ignore:To copy construct:UserWarning:mmdet', 'ignore:torch.meshgrid')
@pytest.mark.parametrize('options', [('--out-dir', 'in'), ('--masks', 'in', '--no-draw'), ('--out-dir', 'link')])
def test_sources_are_never_replaced(options, detector, video, tmp_path):
    folder, _ = detector
    (tmp_path / 'in').mkdir()
    (tmp_path / 'link').symlink_to('in')
    shutil.copyfile(folder / 'images/0.png', tmp_path / 'in/0.png')
    shutil.copyfile(video, tmp_path / 'in/clip.avi')
    before = [(tmp_path / name).read_bytes() for name in ('in/0.png', 'in/clip.avi')]
    for source in ('in', 'in/clip.avi')[: 1 if '--masks' in options else 2]:
        shown = run_alone(folder / 'det.onnx', source, *options, cwd=tmp_path, expect=1)
        assert f'was given to be read and would be replaced: choose another {options[0]}' in shown
    assert before == [(tmp_path / name).read_bytes() for name in ('in/0.png', 'in/clip.avi')]


def test_masks_are_numbers_of_classes():
    masks = np.zeros((2, 4, 4), bool)
    masks[0, :2], masks[1, 1:3] = True, True
    found = predict.Prediction(masks=masks, scores=np.array([0.9, 0.5]), labels=np.array([4, 0]))
    assert predict.class_map(found, (4, 4))[:, 0].tolist() == [5, 5, 1, 0]
    assert predict.class_map(found, (4, 4), threshold=0.6)[:, 0].tolist() == [5, 5, 0, 0]
    assert predict.class_map(predict.Prediction(classes=np.full((2, 2), 7)), (2, 2)).tolist() == [[7, 7], [7, 7]]
    many = dataclasses.replace(found, labels=found.labels + 300)
    for each in (predict.Prediction(classes=np.full((2, 2), 300)), many):
        with pytest.raises(UserError, match='--masks are images of eight bits, and 30. does not fit: omit it'):
            predict.class_map(each, (4, 4))


class Endless:
    """A video of which the user has enough."""

    name, rate, frames = 'endless', 25.0, None

    def __init__(self, live):
        self.live = live

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_an_interrupt_ends_a_camera_and_not_a_file_that_does_not_say_its_length(tmp_path, monkeypatch):
    def interrupted(live):
        monkeypatch.setattr(predict, 'Video', lambda source: Endless(live))
        with predict.copied_video('0', tmp_path) as (_, _, bar):
            bar.step()
            raise KeyboardInterrupt

    interrupted(live=True)
    with pytest.raises(KeyboardInterrupt):
        interrupted(live=False)


def test_videos_need_opencv(detector, video, tmp_path):
    folder, _ = detector
    shown = run_alone(folder / 'det.onnx', video, cwd=tmp_path, blocked=(*BLOCKED, 'cv2'), expect=1)
    assert "clip.avi' needs OpenCV to be read as a video: pip install opencv-python-headless" in shown


@pytest.mark.filterwarnings('ignore:To copy construct:UserWarning:mmdet', 'ignore:torch.meshgrid')
@torch.no_grad()
def test_predictions_are_those_of_the_model_on_the_original_image(detector):
    from mmdet.structures import DetDataSample

    folder, part = detector
    image = predict.read_image(folder / 'images/1.png')
    found = predict.predict(predict.open_file(folder / 'det.onnx', threads=1), image)
    pixels, scale = predict.prepared(image, part.about['steps'])
    assert pixels.shape == (128, 151, 3)
    batch = {
        'inputs': [torch.from_numpy(pixels[..., ::-1].transpose(2, 0, 1).copy())],
        'data_samples': [DetDataSample(metainfo=dict(img_shape=(128, 151), ori_shape=(51, 60), scale_factor=scale))],
    }
    expected = part.network.test_step(batch)[0].pred_instances
    assert len(expected) > 5
    np.testing.assert_allclose(found.boxes, expected.bboxes.numpy(), atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores.numpy(), atol=1e-4)
    np.testing.assert_array_equal(found.labels, expected.labels.numpy())
    assert (found.masks != expected.masks.numpy()).mean() < 1e-3


def test_what_a_user_does_wrong_is_one_sentence(detector, tmp_path):
    folder, _ = detector
    for arguments, said in (
        (('none.onnx', folder / 'images'), "there is no file 'none.onnx'"),
        (('net.pt', folder / 'images'), "there is no file 'net.pt'"),
        (('net.pth', folder / 'images'), "'net.pth' does not run here: give what repnext export wrote, one of .onnx"),
        ((folder / 'det.onnx', 'nowhere'), "'nowhere' is not an image, a video or a folder of .bmp"),
        ((folder / 'det.onnx', 'gone.mp4'), "there is no video 'gone.mp4'"),
        ((folder / 'det.onnx', '99'), "camera '99' cannot be opened by OpenCV"),
        ((folder / 'det.onnx', 'gone/*.jpg'), "nothing fits the pattern 'gone/*.jpg'"),
        ((folder / 'det.onnx', folder / 'det.onnx'), 'cannot be read as an image'),
        ((folder / 'det.onnx', folder / 'images', '--streams', '0'), '--streams 0 and --threads None compute nothing'),
    ):
        shown = run_alone(*arguments, cwd=tmp_path, expect=1)
        assert said in shown
        assert 'Traceback' not in shown
        assert shown.startswith('error: ')


def test_the_command_needs_no_torch(detector, tmp_path):
    folder, _ = detector
    code = f"""
import sys
for name in ('torch', 'torchvision', 'mmcv', 'mmdet'):
    sys.modules[name] = None
sys.argv = ['repnext', 'predict', {str(folder / 'det.onnx')!r}, {str(folder / 'images')!r}, '--out-dir', 'out']
from repnext_mm.cli import main
main()
"""
    result = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / 'out').iterdir())) == 3


def test_run_lengths_are_those_of_pycocotools():
    mask_utils = pytest.importorskip('pycocotools.mask')
    generator = np.random.default_rng(0)
    for mask in (
        generator.random((37, 21)) > 0.5,
        generator.random((300, 200)) > 0.999,
        np.zeros((5, 7), bool),
        np.ones((40, 50), bool),
    ):
        ours = predict.run_lengths(mask)
        theirs = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert (ours['size'], ours['counts']) == (list(theirs['size']), theirs['counts'].decode())


@pytest.mark.parametrize('align_corners', [False, True])
def test_interpolation_is_torchs(align_corners):
    maps = torch.rand(2, 9, 5)
    for size in ((23, 11), (4, 5), (9, 3)):
        expected = F.interpolate(maps[None], size=size, mode='bilinear', align_corners=align_corners)[0]
        rows, columns = (predict.bilinear(new, old, align_corners) for new, old in zip(size, (9, 5), strict=True))
        np.testing.assert_allclose(rows @ maps.numpy() @ columns.T, expected.numpy(), atol=1e-6)
        about = {'task': 'segmentation', 'align_corners': align_corners, 'mask_threshold': 0.5}
        for found, right in ((maps, expected.argmax(0)), (maps[:1] - 0.5, expected[0] > 0.5)):
            given = predict.finished(about, [found[None].numpy()], size=size, scale=(1.0, 1.0)).classes
            assert np.array_equal(given, right.numpy())


def test_sizes_are_those_of_the_pipelines():
    transforms = pytest.importorskip('mmcv.transforms')
    image = np.random.default_rng(0).integers(0, 256, (61, 90, 3), np.uint8)

    def piped(*steps):
        results = {'img': image[..., ::-1], 'img_shape': image.shape[:2]}
        for step in steps:
            results = step(results)
        return results['img'][..., ::-1]

    for step, steps in (
        ({'resize': [70, 50], 'keep_ratio': True}, [transforms.Resize(scale=(70, 50), keep_ratio=True)]),
        ({'resize': [70, 50], 'keep_ratio': False}, [transforms.Resize(scale=(70, 50))]),
        ({'pad': [100, 80], 'value': [1, 2, 3]}, [transforms.Pad(size=(100, 80), pad_val=dict(img=(3, 2, 1)))]),
        ({'crop': [41, 50]}, [transforms.CenterCrop(crop_size=(50, 41))]),
    ):
        np.testing.assert_array_equal(predict.prepared(image, [step])[0], piped(*steps))
