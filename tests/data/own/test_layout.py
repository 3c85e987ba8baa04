"""Layouts: what is found, and what a person is told where nothing is."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from repnext_mm.data.own import Findings, check_label_maps, find_boxes, find_class_folders, find_coco, find_label_maps
from tests.data.own.small_sets import SPLITS, coco_content, noise, write_coco, write_folders, write_maps

MAP_LAYOUTS = {
    'kind, split': {},
    'split, kind': dict(layout='{split}/{kind}'),
    'split, kind, one suffix': dict(layout='{split}/{kind}', image='.png'),
    'ade20k': dict(kinds=('images', 'annotations')),
    'mmseg': dict(kinds=('img_dir', 'ann_dir')),
    'cityscapes': dict(kinds=('leftImg8bit', 'gtFine'), image='_leftImg8bit.png', label='_gtFine_labelTrainIds.png'),
    'camvid': dict(layout='{split}{kind}', kinds=('', 'annot'), image='.png'),
    'upper case': dict(layout='{split}/{kind}', kinds=('Images', 'Labels'), image='.JPG', label='.PNG'),
    'one folder deeper': dict(layout='city/{split}/{kind}'),
    'suffixes': dict(image='_sat.tif', label='_mask.tiff'),
    'beside': dict(layout='{split}', label='_mask.png'),
    'beside, by format': dict(layout='{split}'),
    'beside, one format': dict(layout='{split}', image='_rgb.png', label='_labelIds.png'),
    'maps below images': dict(layout='{split}{kind}', kinds=('', '/masks')),
    'another kind of image': dict(layout='{split}/{kind}', image='.webp', label='.bmp'),
}


@pytest.mark.parametrize('name', MAP_LAYOUTS)
def test_label_maps_are_found_as_mmseg_reads_them(tmp_path, name):
    mmseg = pytest.importorskip('mmseg.datasets')
    if name == 'another kind of image':
        (tmp_path / 'train/depth').mkdir(parents=True)
        noise().save(tmp_path / 'train/depth/0.webp')  # `images` decides between the two
    write_maps(tmp_path, **MAP_LAYOUTS[name])
    found, findings = find_label_maps(tmp_path), Findings()
    facts = check_label_maps(found, ('ground', 'thing'), findings)
    assert not findings.errors, findings.report()
    for split in SPLITS:
        data = mmseg.BaseSegDataset(
            data_prefix=dict(img_path=str(found[split].images), seg_map_path=str(found[split].maps)),
            img_suffix=facts.suffixes[split].image,
            seg_map_suffix=facts.suffixes[split].map,
        )
        assert len(data) == 2
        assert all(os.path.isfile(data.get_data_info(place)['seg_map_path']) for place in range(2))


def rename_all(folder, name):
    for path in list(folder.rglob('*.*')):
        path.rename(path.with_name(name(path)))


def link_to_nothing(root):
    shutil.rmtree(root / 'images')
    (root / 'images').symlink_to(root / 'gone')


SENTENCES = {
    'nothing so named': (
        lambda root: shutil.move(root / 'images/val', root / 'images/other'),
        "no folder of images named as the split 'val' (it holds 'images', 'masks')",
    ),
    'nothing readable': (
        lambda root: rename_all(root / 'images/val', lambda path: f'{path.stem}.heic'),
        'nothing in it can be read (2 .heic)',
    ),
    'several': (
        lambda root: shutil.copytree(root / 'images', root / 'more_images'),
        "2 folders of images of the split 'train' ('images/train', 'more_images/train')",
    ),
    'no maps': (
        lambda root: shutil.rmtree(root / 'masks'),
        "no label map lies beside an image ('0.jpg', '1.jpg'), and no folder of maps is called annotations",
    ),
    'maps of one split': (
        lambda root: shutil.rmtree(root / 'masks/val'),
        "no folder of label maps named as the split 'val'",
    ),
    'other names': (
        lambda root: rename_all(root / 'masks', lambda path: f'mask_{path.name}'),
        "('mask_0.png', 'mask_1.png') fits an image ('0.jpg', '1.jpg')",
    ),
    'a link to nothing': (link_to_nothing, "links that lead nowhere: 'images'"),
}


def check_maps(root, **options):
    findings = Findings()
    check_label_maps(find_label_maps(root), ('ground', 'thing'), findings, **options)
    return findings


@pytest.mark.parametrize('name', SENTENCES)
def test_what_is_said_where_maps_are_not_found(tmp_path, name):
    spoil, sentence = SENTENCES[name]
    write_maps(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError) as caught:
        check_maps(tmp_path)
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 500


def test_several_maps_for_each_image(tmp_path):
    write_maps(tmp_path)
    for path in list((tmp_path / 'masks').rglob('*.png')):
        shutil.copy(path, path.with_name(f'{path.stem}_color.png'))
    with pytest.raises(ValueError, match=r"end in '.png', '_color.png': say which with --map-suffix"):
        check_maps(tmp_path)
    assert not check_maps(tmp_path, map_suffix='.png').errors
    with pytest.raises(ValueError, match=r"ends in --map-suffix '_other.png': it holds 4 .png"):
        check_maps(tmp_path, map_suffix='_other.png')


def test_maps_beside_images_that_mmseg_cannot_tell_apart(tmp_path):
    write_maps(tmp_path, layout='{split}', image='.png', label='_mask.png')
    with pytest.raises(ValueError, match="move the maps to a folder 'masks'"):
        check_maps(tmp_path)


def test_coco_files_among_others(tmp_path):
    write_coco(tmp_path)
    for split in SPLITS:
        (tmp_path / split / 'meta.json').write_text('{"author": "me"}')
        (tmp_path / split / '.ipynb_checkpoints').mkdir()
        (tmp_path / split / '.ipynb_checkpoints/x.json').write_text('{}')
        (tmp_path / split / '._annotations.coco.json').write_bytes(b'\0')
    found = find_coco(tmp_path)
    assert [found[split].annotations.name for split in SPLITS] == ['_annotations.coco.json'] * 2
    assert [found[split].images for split in SPLITS] == [tmp_path / split for split in SPLITS]


def labels_apart(root, suffix):
    for kind in ('images', 'labels'):
        for split in SPLITS:
            (root / kind / split).mkdir(parents=True)
            (root / kind / split / f'0{suffix if kind == "labels" else ".jpg"}').touch()


def one_file(root):
    (root / 'instances_default.json').write_text(json.dumps(coco_content()))


NO_COCO = {
    'another': (
        lambda root: labels_apart(root, '.ann'),
        ['no .json file', 'but 2 .jpg, 2 .ann: give JSON (COCO, labelme'],
    ),
    'empty': (lambda root: None, ['no .json file', 'but no file']),
    'without a split': (one_file, ["1 .json file ('instances_default.json'), and none is named as the split 'train'"]),
}


@pytest.mark.parametrize('name', NO_COCO)
def test_annotations_of_another_format_are_one_short_sentence(tmp_path, name):
    make, parts = NO_COCO[name]
    make(tmp_path)
    with pytest.raises(ValueError) as caught:
        find_boxes(tmp_path, None, Findings())
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert len(str(caught.value)) < 600


def test_class_folders_below_another_folder_and_among_a_system_s(tmp_path):
    write_folders(tmp_path / 'pets', classes=('cat', 'train'))  # a class may be called so
    write_folders(tmp_path / '__MACOSX')
    assert find_class_folders(tmp_path) == {split: tmp_path / 'pets' / split for split in SPLITS}


def test_split_folders_without_class_folders(tmp_path):
    write_folders(tmp_path)
    for path in (tmp_path / 'val').iterdir():
        shutil.rmtree(path)
    noise().save(tmp_path / 'val/0.jpg')
    with pytest.raises(ValueError, match=r'has no folder in it, but 1 .jpg: make one folder for each class'):
        find_class_folders(tmp_path)


def test_links_to_folders_are_followed_as_training_follows_them(tmp_path):
    write_maps(tmp_path / 'store')
    (tmp_path / 'data').mkdir()
    for kind in ('images', 'masks'):
        os.symlink(tmp_path / 'store' / kind, tmp_path / 'data' / kind)
    assert find_label_maps(tmp_path / 'data')['val'].maps == tmp_path / 'data/masks/val'


def test_a_link_to_a_folder_above_is_refused(tmp_path):
    write_maps(tmp_path)
    os.symlink(tmp_path / 'images', tmp_path / 'images/train/again')
    with pytest.raises(ValueError, match='is a link to a folder above it'):
        find_label_maps(tmp_path)


def test_two_spellings_of_a_suffix_are_not_two_maps(tmp_path):
    write_maps(tmp_path, image='.png')
    (tmp_path / 'images/train/0.png').rename(tmp_path / 'images/train/0.PNG')
    findings = check_maps(tmp_path)
    assert any(rule.startswith('images of a split need one ending') for rule in findings.errors), findings.report()
