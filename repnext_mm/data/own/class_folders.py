"""Checks of images in one folder per class."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from repnext_mm.data.own.files import is_hidden, list_files, suffix_counts
from repnext_mm.data.own.findings import Findings, quoted
from repnext_mm.data.own.images import SUFFIXES, is_image_name, see_all
from repnext_mm.data.sources import Split

DEFAULT_SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')  # of MMPretrain's CustomDataset


class FolderFacts(NamedTuple):
    """What a config needs to know."""

    classes: tuple[str, ...]  # sorted: MMPretrain numbers the folders so, whatever `classes` says
    images: int  # to train on
    suffixes: tuple[str, ...] | None  # what `extensions` must name; None: the default's are enough


def check_class_folders(splits: Mapping[Split, Path], classes: Sequence[str] | None, findings: Findings) -> FolderFacts:
    """Check the folders of both splits against each other and ``classes`` (None: all of them), and decode every image.

    Both splits need the same folders: MMPretrain numbers those that it finds, so that one that is absent from a split
    shifts the labels of all that follow.
    """
    folders = {split: _class_names(folder, findings) for split, folder in splits.items()}
    names = sorted(folders['train'] if classes is None else classes)
    if classes is not None and list(classes) != names:
        findings.warn('MMPretrain numbers classes by their sorted folders, and so does the config', quoted(names))
    if len(names) == 1:
        findings.warn('one class only: are the class folders one level deeper', f"'{splits['train'] / names[0]}'")
    counts: dict[Split, int] = {}
    suffixes: set[str] = set()
    for split, folder in splits.items():
        for name in sorted(set(names) - set(folders[split])):
            findings.error('class without a folder (make one, even if it stays empty)', f"'{name}' in {folder}")
        for name in sorted(set(folders[split]) - set(names)):
            source = "the training data's" if classes is None else '--classes'
            findings.error(f'folder that is not among {source}: its label would shift the others', f"'{folder / name}'")
        images: list[Path] = []
        others = [path for path in folder.iterdir() if is_image_name(path)]  # in no class
        for name in sorted(set(names) & set(folders[split])):
            listing = list_files(folder / name)
            files = [folder / name / file for file in listing.files]
            of_class = [path for path in files if is_image_name(path)]
            images += of_class
            others += [path for path in files if not is_image_name(path)]
            if not of_class:
                findings.warn('class folder without images', f"'{folder / name}' ({suffix_counts(files)})")
            for hidden in listing.hidden:
                findings.error('hidden folder, which training reads too: remove it', f"'{folder / name / hidden}'")
            for link in listing.broken:
                findings.error('link that leads nowhere: remove it', f"'{folder / name / link}'")
        if others:
            findings.warn(
                f'files are left out: training reads what lies in a class folder and ends in {" ".join(SUFFIXES)}',
                f'{suffix_counts(others)} of {split} ({quoted(path.relative_to(folder) for path in others)})',
            )
        if not images:
            findings.error('no image in any class folder', f'{folder} ({suffix_counts(others)})')
        for path, seen in zip(images, see_all(images), strict=True):
            seen.report(f"'{path}'", findings)
        counts[split] = len(images)
        suffixes |= {path.suffix.lower() for path in images}
        findings.counts.append(
            f'{split}: {len(images)} images ({suffix_counts(images)}) of {len(names)} classes in {folder}'
        )
    needed = None if suffixes <= set(DEFAULT_SUFFIXES) else tuple(sorted(suffixes))
    return FolderFacts(tuple(names), counts['train'], needed)


def _class_names(folder: Path, findings: Findings) -> list[str]:
    """The folders that MMPretrain takes for classes, as it lists them."""
    from mmengine.fileio import list_dir_or_file

    names = sorted(list_dir_or_file(str(folder), list_dir=True, list_file=False))
    for name in filter(is_hidden, names):
        findings.error('hidden folder, which training takes for a class: remove it', f"'{folder / name}'")
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_symlink() and not os.path.exists(entry.path):
            findings.error('link that leads nowhere', f"'{entry.path}'")
    return [name for name in names if not is_hidden(name)]
