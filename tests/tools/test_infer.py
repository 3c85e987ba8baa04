"""Annotated images through the ecosystem's inferencers, whatever the checkpoint knows of its classes."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from repnext_mm.apis import annotate_image, annotate_images
from repnext_mm.apis.image_file import found_images
from repnext_mm.apis.infer import ClassScore, draw_classes, top_classes
from repnext_mm.cli import parser_of
from repnext_mm.cli.infer import run
from repnext_mm.data.scene import compose_scene
from repnext_mm.errors import UserError
from tests.tools.running import ROOT, run_tool

DETECTION = ROOT / 'configs' / 'mask_rcnn_repnext_m0_coco.py'
SEGMENTATION = ROOT / 'configs' / 'semantic_fpn_repnext_m0_ade20k.py'
CLASSIFICATION = ROOT / 'configs' / 'repnext_m0_imagenet.py'
SMALL = {'test_dataloader.dataset.pipeline.1.scale': (96, 96)}


@pytest.fixture(scope='module')
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp('images') / 'scene.jpg'
    cv2.imwrite(str(path), compose_scene(split='val', index=0).image[..., ::-1])
    return path


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """Random weights of both models: a detector whose scores are high, a segmentor that names two classes."""
    folder, found = tmp_path_factory.mktemp('weights'), {}
    for path, meta in ((DETECTION, {}), (SEGMENTATION, {})):
        config = Config.fromfile(path)
        init_default_scope(config.default_scope)
        torch.manual_seed(0)
        state = MODELS.build(config.model).state_dict()
        if 'roi_head.bbox_head.fc_cls.weight' in state:
            state['roi_head.bbox_head.fc_cls.weight'] *= 100
        found[path] = folder / f'{path.stem}.pth'
        torch.save({'state_dict': state, 'meta': meta}, found[path])
    return found


@pytest.mark.parametrize('config', [DETECTION, SEGMENTATION], ids=['detection', 'segmentation'])
def test_image_is_annotated(config, image, checkpoints, tmp_path, capsys):
    written = annotate_image(
        image, config, str(checkpoints[config]), out_dir=tmp_path, device='cpu', score_threshold=0.05, options=SMALL
    )
    assert written == tmp_path / 'vis' / 'scene.jpg'
    drawn, original = cv2.imread(str(written)), cv2.imread(str(image))
    assert drawn.shape == original.shape
    assert np.abs(drawn.astype(int) - original).max() > 50


@pytest.mark.parametrize(
    ('config', 'count', 'last'), [(DETECTION, 80, 'toothbrush'), (SEGMENTATION, 150, 'flag')], ids=['coco', 'ade20k']
)
@pytest.mark.parametrize('named', [False, True], ids=['config', 'checkpoint'])
def test_class_names(config, count, last, named, image, checkpoints, tmp_path, monkeypatch):
    import repnext_mm.apis.infer as infer

    content = torch.load(checkpoints[config])
    if named:
        content['meta']['dataset_meta'] = {'classes': ('a', 'b'), 'palette': [[1, 2, 3], [4, 5, 6]]}
    path = tmp_path / 'weights.pth'
    torch.save(content, path)
    loaded = infer.build_inferencer(infer.load_config(config, options=SMALL), str(path), device='cpu')
    classes = loaded.model.dataset_meta['classes']
    assert (classes == ('a', 'b')) if named else (len(classes) == count and classes[-1] == last)


def test_the_tool_says_where_the_image_is(image, checkpoints, tmp_path):
    scale = ['--cfg-options', 'test_dataloader.dataset.pipeline.1.scale=(96,96)']
    output = run_tool(ROOT / 'tools/infer.py', image, SEGMENTATION, checkpoints[SEGMENTATION], *scale, cwd=tmp_path)
    assert output.rstrip().endswith('wrote work_dirs/infer/vis/scene.jpg')
    assert 'norms 53 -> 0' in output
    assert (tmp_path / 'work_dirs/infer/vis/scene.jpg').is_file()


@pytest.fixture
def video(tmp_path):
    """Three frames of a scene, Motion JPEG."""
    path = tmp_path / 'clip.avi'
    frame = compose_scene(split='val', index=0, size=128).image[..., ::-1]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 5.0, (128, 128))
    for _ in range(3):
        writer.write(frame)
    writer.release()
    return path


@pytest.mark.parametrize('config', [DETECTION, SEGMENTATION], ids=['detection', 'segmentation'])
def test_images_and_videos_become_videos_masks_and_coco(config, image, video, checkpoints, tmp_path, capsys):
    out = ['--out', str(tmp_path / 'found.json')] if config == DETECTION else []
    words = [str(image), str(video), str(config), str(checkpoints[config]), '--out-dir', str(tmp_path / 'drawn'), *out]
    words += ['--masks', str(tmp_path / 'masks'), '--device', 'cpu', '--score-threshold', '0.05']
    parsed = parser_of('infer').parse_args(
        [*words, '--cfg-options', 'test_dataloader.dataset.pipeline.1.scale=(96,96)']
    )
    assert run(parsed) == 0
    opened = cv2.VideoCapture(str(tmp_path / 'drawn/vis/clip.avi'))
    assert opened.get(cv2.CAP_PROP_FPS) == 5
    frames = [opened.read()[1] for _ in range(4)]
    assert [None if frame is None else frame.shape for frame in frames] == [(128, 128, 3)] * 3 + [None]
    plain = cv2.VideoCapture(str(video)).read()[1]
    assert np.abs(frames[0].astype(int) - plain).max() > 50
    names = ['clip_000000', 'clip_000001', 'clip_000002']
    assert sorted(path.stem for path in (tmp_path / 'masks').iterdir()) == [*names, 'scene']
    mask = cv2.imread(str(tmp_path / 'masks/clip_000000.png'), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (128, 128)
    shown = capsys.readouterr()
    assert '3/3 images' in shown.err
    if config == DETECTION:
        results = json.loads((tmp_path / 'found.json').read_text())
        assert {item['image_id'] for item in results} == {'scene.jpg', *names}
        assert all(set(item) == {'image_id', 'category_id', 'bbox', 'score', 'segmentation'} for item in results)
    else:
        assert 'wrote' in shown.out


def test_results_of_a_segmentor_are_not_coco_s(image, checkpoints, tmp_path):
    words = [
        str(image),
        str(SEGMENTATION),
        str(checkpoints[SEGMENTATION]),
        '--out-dir',
        str(tmp_path),
        '--device',
        'cpu',
    ]
    words += [
        '--out',
        str(tmp_path / 'found.json'),
        '--cfg-options',
        'test_dataloader.dataset.pipeline.1.scale=(96,96)',
    ]
    with pytest.raises(UserError, match='--out is for detectors: omit it'):
        run(parser_of('infer').parse_args(words))


@pytest.mark.parametrize(
    ('changed', 'words'),
    [
        (dict(image='absent.jpg'), r"image 'absent\.jpg' does not exist"),
        (dict(config_path='absent.py'), r"config 'absent\.py' does not exist"),
        (dict(checkpoint='absent.pth'), r"checkpoint 'absent\.pth' does not exist"),
        (dict(score_threshold=3.0), r'score_threshold=3\.0 is not a probability'),
        (dict(device='cuda:99'), r"device 'cuda:99' cannot be used here"),
        (dict(device='gpu'), r"device 'gpu' cannot be used here"),
        (dict(options={'default_scope': 'mmpose'}), r"default_scope='mmpose' has no annotated images"),
        (dict(options={'test_dataloader': None}), 'has no `test_dataloader`, whose pipeline prepares the image'),
    ],
)
def test_what_cannot_be_done_is_said(changed, words, image, checkpoints):
    given = dict(image=image, config_path=DETECTION, checkpoint=str(checkpoints[DETECTION])) | changed
    with pytest.raises((FileNotFoundError, ValueError), match=words):
        annotate_image(**given)


def test_a_file_that_is_not_an_image(checkpoints, tmp_path):
    path = Path(tmp_path / 'text.jpg')
    path.write_text('not an image')
    with pytest.raises(ValueError, match=r"image '.*text\.jpg' cannot be read"):
        annotate_image(path, DETECTION, str(checkpoints[DETECTION]))


LOGITS = {281: 8.0, 282: 7.0, 0: 6.0, 999: 5.0, 7: 4.0, 8: 3.0}  # of the other 994 classes: 0


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    """Weights of a classifier that gives every image the same scores, without names of classes."""
    init_default_scope('mmpretrain')
    state = MODELS.build(Config.fromfile(CLASSIFICATION).model).state_dict()
    for head in ('head', 'head_dist'):
        state[f'head.{head}.linear.weight'].zero_()
        for label, logit in LOGITS.items():
            state[f'head.{head}.linear.bias'][label] = logit
    path = tmp_path_factory.mktemp('weights') / 'classifier.pth'
    torch.save({'state_dict': state, 'meta': {}}, path)
    return path


def test_classes_of_an_image(image, classifier, tmp_path):
    lines = []
    written = annotate_image(
        image, CLASSIFICATION, str(classifier), out_dir=tmp_path, device='cpu', report=lines.append
    )
    scores = torch.zeros(1000)
    scores[list(LOGITS)] = torch.tensor(list(LOGITS.values()))
    scores = scores.softmax(0)
    named = {281: 'tabby, tabby cat', 282: 'tiger cat', 0: 'tench, Tinca tinca', 999: 'toilet tissue', 7: 'cock'}
    assert [line.split()[1] for line in lines] == ['281', '282', '0', '999', '7']
    for line, (label, name) in zip(lines, named.items(), strict=True):
        assert line.startswith(f'{scores[label]:.4f} {label} ({name}')
    drawn, original = cv2.imread(str(written)), cv2.imread(str(image))
    assert written == tmp_path / 'vis' / 'scene.jpg'
    assert [path.name for path in (tmp_path / 'vis').iterdir()] == ['scene.jpg']
    scale = 320 / min(original.shape[:2])
    assert min(drawn.shape[:2]) == (320 if scale > 1 else min(original.shape[:2]))
    plain = cv2.resize(original, drawn.shape[1::-1])
    changed = np.abs(drawn.astype(int) - plain).max(axis=2) > 50
    assert changed[: len(changed) // 2].sum() > 500  # the text, at the top left
    assert changed[len(changed) // 2 :].sum() < 0.01 * changed.size  # edges: matplotlib before 3.11 moves some columns


def test_the_checkpoint_names_the_classes_first(image, classifier, tmp_path):
    content = torch.load(classifier)
    content['meta']['dataset_meta'] = {'classes': [f'name {label}' for label in range(1000)]}
    torch.save(content, tmp_path / 'named.pth')
    lines = []
    annotate_image(
        image,
        CLASSIFICATION,
        str(tmp_path / 'named.pth'),
        out_dir=tmp_path,
        fuse=False,
        device='cpu',
        report=lines.append,
    )
    assert lines[0].endswith('281 (name 281)')
    assert lines[4].endswith('7 (name 7)')


def test_the_tool_prints_the_classes(image, classifier, tmp_path, monkeypatch, capsys):
    tool = str(ROOT / 'tools/infer.py')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', [tool, str(image), str(CLASSIFICATION), str(classifier), '--device', 'cpu'])
    runpy.run_path(tool, run_name='__main__')
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.endswith(' 281 (tabby, tabby cat)')]) == 1
    assert lines[-1] == 'wrote work_dirs/infer/vis/scene.jpg'


class Scorer:
    """A classifier of three classes that keeps what it is given."""

    def __init__(self, *, to_rgb):
        self.data_preprocessor = SimpleNamespace(to_rgb=to_rgb)

    def test_step(self, data):
        from mmpretrain.structures import DataSample

        (self.seen,) = data['inputs']
        return [DataSample().set_pred_score(torch.tensor([0.25, 0.7, 0.05]))]


@pytest.mark.parametrize(
    ('steps', 'to_rgb', 'first'),
    [([], False, 255), ([], True, 0), (['LoadImageFromFile'], True, 0), (['LoadImageFromFile'], False, 0)],
    ids=['memory', 'memory-to-rgb', 'file-to-rgb', 'file'],
)
def test_channels_are_those_of_the_data_set(steps, to_rgb, first, tmp_path):
    """Files are loaded as BGR; what is in memory is RGB, unless the model's preprocessor swaps it to become that."""
    red = np.zeros((40, 50, 3), np.uint8)
    red[..., 2] = 255
    cv2.imwrite(str(tmp_path / 'red.png'), red)
    init_default_scope('mmpretrain')
    model = Scorer(to_rgb=to_rgb)
    pipeline = [dict(type=name) for name in [*steps, 'PackInputs']]
    found = top_classes(model, tmp_path / 'red.png', pipeline=pipeline, names=['a', 'b'])
    assert model.seen.shape == (3, 40, 50)
    assert model.seen[:, 0, 0].tolist() == [first, 0, 255 - first]
    assert [item.label for item in found] == [1, 0, 2]
    assert {item.name for item in found} == {None}  # two names are not those of three classes
    assert str(found[0]) == '0.7000 1'


def test_a_photograph_is_turned_as_its_exif_says(tmp_path):
    """As the drawn one is, although the ImageNet recipes test on images as they are stored."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new('RGB', (50, 40)).save(tmp_path / 'turned.jpg', exif=exif)
    init_default_scope('mmpretrain')
    model = Scorer(to_rgb=True)
    load = Config.fromfile(CLASSIFICATION).test_dataloader.dataset.pipeline[0]
    top_classes(model, tmp_path / 'turned.jpg', pipeline=[load, dict(type='PackInputs')])
    assert model.seen.shape == (3, 50, 40)
    assert load['color_type'] == 'color_ignore_orientation'


def test_a_model_without_scores(tmp_path):
    from mmpretrain.structures import DataSample

    cv2.imwrite(str(tmp_path / 'gray.png'), np.zeros((40, 50, 3), np.uint8))
    init_default_scope('mmpretrain')
    model = SimpleNamespace(test_step=lambda data: [DataSample()], data_preprocessor=SimpleNamespace())
    with pytest.raises(ValueError, match='SimpleNamespace gives no score for each class'):
        top_classes(model, tmp_path / 'gray.png', pipeline=[dict(type='PackInputs')])


def test_a_small_image_is_enlarged_to_be_read(tmp_path):
    cv2.imwrite(str(tmp_path / 'small.png'), np.full((32, 48, 3), 128, np.uint8))
    drawn = draw_classes(tmp_path / 'small.png', [ClassScore(3, None, 0.9), ClassScore(1, None, 0.05)])
    assert drawn.shape == (320, 480, 3)
    assert drawn.min() < 60


def written(folder):
    return sorted(path.name for path in (folder / 'vis').iterdir())


def test_images_of_folders_patterns_and_files_are_each_annotated_once(image, classifier, tmp_path):
    folder, other = tmp_path / 'in', tmp_path / 'other'
    for place in (folder, other, folder / 'inner'):
        place.mkdir()
        cv2.imwrite(str(place / 'a.png'), cv2.imread(str(image)))
    (folder / 'notes.txt').write_text('not an image')
    (folder / 'b.jpg').write_text('not an image either')
    said = []
    given = [folder, str(tmp_path / '*' / 'a.png'), folder / 'a.png']
    done = annotate_images(given, CLASSIFICATION, str(classifier), out_dir=tmp_path, device='cpu', report=said.append)
    assert [path.name for path in done.written] == ['a.png', 'a_2.png']
    assert written(tmp_path) == ['a.png', 'a_2.png']
    assert not done.replaced
    assert list(done.failed) == [str(folder / 'b.jpg')]
    assert 'cannot be read' in done.failed[str(folder / 'b.jpg')]
    assert [line for line in said if '/' in line] == [
        str(folder / 'a.png'),
        str(folder / 'b.jpg'),
        str(other / 'a.png'),
    ]
    assert len([line for line in said if '281' in line]) == 2
    again = annotate_images([other], CLASSIFICATION, str(classifier), out_dir=tmp_path, device='cpu')
    assert again.replaced == again.written == (tmp_path / 'vis' / 'a.png',)


def test_two_images_of_one_name_of_a_segmentor(image, checkpoints, tmp_path):
    for place in ('one', 'two'):
        (tmp_path / place).mkdir()
        cv2.imwrite(str(tmp_path / place / 'a.png'), cv2.imread(str(image)))
    done = annotate_images(
        [tmp_path / 'one', tmp_path / 'two'],
        SEGMENTATION,
        str(checkpoints[SEGMENTATION]),
        out_dir=tmp_path,
        device='cpu',
        options=SMALL,
    )
    assert not done.failed
    assert written(tmp_path) == ['a.png', 'a_2.png']
    assert np.array_equal(*(cv2.imread(str(path)) for path in done.written))


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        ('folder', r"folder '.*folder' holds no image \(\.jpg, .*a pattern such as '.*folder/\*/\*\.jpg'"),
        ('folder/*.jpg', r"nothing fits the pattern '.*\*\.jpg'"),
        ('absent', r"image '.*absent' does not exist"),
    ],
)
def test_where_there_are_no_images(given, words, tmp_path):
    (tmp_path / 'folder' / 'inner').mkdir(parents=True)
    with pytest.raises((FileNotFoundError, ValueError), match=words):
        found_images([tmp_path / given])
    with pytest.raises((FileNotFoundError, ValueError), match='is a folder: give one|does not exist'):
        annotate_image(tmp_path / given, CLASSIFICATION, 'any.pth')


def test_the_tool_says_what_became_of_each_image(image, classifier, tmp_path, monkeypatch, capsys):
    tool = str(ROOT / 'tools/infer.py')
    (tmp_path / 'broken.jpg').write_text('not an image')
    arguments = [str(image), 'broken.jpg', str(CLASSIFICATION), str(classifier), '--device', 'cpu']
    monkeypatch.chdir(tmp_path)
    for verb, replaced in (('wrote', 0), ('replaced', 1)):
        monkeypatch.setattr('sys.argv', [tool, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(tool, run_name='__main__')
        assert ended.value.code == 1
        out, err = capsys.readouterr()
        assert out.splitlines()[-2:] == [
            f'{verb} work_dirs/infer/vis/scene.jpg',
            f'1 of 2 images annotated, {replaced} in the place of earlier ones',
        ]
        assert "error: image 'broken.jpg' cannot be read" in err
