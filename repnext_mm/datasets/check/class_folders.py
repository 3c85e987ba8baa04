"""Checks of pictures in one folder per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from repnext_mm.datasets.check.findings import Findings
from repnext_mm.datasets.check.pictures import SUFFIXES, is_readable, pictures_below
from repnext_mm.datasets.sources import Split


class FolderFacts(NamedTuple):
    """What a config needs to know."""

    classes: tuple[str, ...]  # sorted: MMPretrain numbers the folders so, whatever `classes` says
    pictures: int  # to train on


def check_class_folders(splits: Mapping[Split, Path], classes: Sequence[str] | None, findings: Findings) -> FolderFacts:
    """Check the folders of both splits against each other and ``classes`` (None: all of them), and open every picture.

    Both splits need the same folders: MMPretrain numbers those that it finds, so that one that is absent from a split
    shifts the labels of all that follow.
    """
    folders: dict[Split, list[str]] = {
        split: sorted(path.name for path in folder.iterdir() if path.is_dir()) for split, folder in splits.items()
    }
    names = sorted(folders['train'] if classes is None else classes)
    if classes is not None and list(classes) != names:
        findings.warn('MMPretrain numbers classes in the order of sorted folders, and so does the config', str(names))
    counts: dict[Split, int] = {}
    for split, folder in splits.items():
        for name in sorted(set(names) - set(folders[split])):
            findings.error('class without a folder (make one, even if it stays empty)', f"'{name}' in {folder}")
        for name in sorted(set(folders[split]) - set(names)):
            source = "the training data's" if classes is None else '--classes'
            findings.error(f'folder that is not among {source}: its label would shift the others', f"'{folder / name}'")
        counts[split] = 0
        for name in sorted(set(names) & set(folders[split])):
            pictures = pictures_below(folder / name)
            counts[split] += len(pictures)
            if not pictures:
                suffixes = ', '.join(SUFFIXES)
                findings.warn(f'class folder without pictures ({suffixes})', f"'{folder / name}'")
            for path in pictures:
                if not is_readable(path):
                    findings.error('picture cannot be read', f"'{path}'")
        if not counts[split]:
            findings.error('no picture in any class folder', str(folder))
        findings.counts.append(f'{split}: {counts[split]} pictures of {len(names)} classes in {folder}')
    return FolderFacts(tuple(names), counts['train'])
