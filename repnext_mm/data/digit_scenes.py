"""Digit scenes as a stock mmdet or mmseg data set: made on first use, whichever tool reads the config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from repnext_mm.data.scene_files import CLASSES, FOLDERS, PALETTE, SceneSet, annotation_path, ensure_scenes
from repnext_mm.data.sources import Split
from repnext_mm.errors import UserError

BACKGROUND_COLOUR = (40, 40, 40)


@DATASETS.register_module(name='DigitScenes')
def build_digit_scenes(
    *,
    task: Literal['instance', 'semantic'],
    split: Split,
    data_root: str = 'data/digit_scenes',
    scenes: dict[str, int] | None = None,
    pipeline: Sequence[Any] = (),
    test_mode: bool = False,
    lazy_init: bool = False,
    indices: int | Sequence[int] | None = None,
    filter_cfg: dict[str, Any] | None = None,
) -> BaseDataset:
    """Make the scenes if they are absent, and return mmdet's ``CocoDataset`` or mmseg's ``BaseSegDataset`` on them.

    A function in the root registry, so that configs, wrappers and inferencers name it like any data set.
    ``scenes`` holds the fields of :class:`SceneSet`; the other arguments are those of the stock data sets.
    In semantic maps 0 is background and 1 to 10 are the digits. With ``lazy_init`` nothing is made: the scenes have to
    be there before the data set is loaded.
    """
    if task not in ('instance', 'semantic'):
        raise UserError(f"task={task!r} is unknown: choose 'instance' (mmdet) or 'semantic' (mmseg)")
    if split not in FOLDERS:
        raise UserError(f'split={split!r} is unknown: choose one of {tuple(FOLDERS)}')
    made = SceneSet(**(scenes or {}))
    if not lazy_init:  # who asks for classes alone waits for no scene
        ensure_scenes(data_root, made)
    options: dict[str, Any] = dict(
        data_root=data_root,
        pipeline=list(pipeline),
        test_mode=test_mode,
        lazy_init=lazy_init,
        indices=indices,
        filter_cfg=filter_cfg,
    )
    images = f'images/{FOLDERS[split]}'
    if task == 'instance':
        from mmdet.datasets import CocoDataset

        return CocoDataset(
            ann_file=str(annotation_path('', split)),
            data_prefix=dict(img=images),
            metainfo=dict(classes=CLASSES, palette=list(PALETTE)),
            **options,
        )
    from mmseg.datasets import BaseSegDataset

    return BaseSegDataset(
        data_prefix=dict(img_path=images, seg_map_path=f'annotations/{FOLDERS[split]}'),
        metainfo=dict(classes=('background', *CLASSES), palette=[BACKGROUND_COLOUR, *PALETTE]),
        img_suffix='.jpg',
        seg_map_suffix='.png',
        **options,
    )
