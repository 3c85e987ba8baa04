"""Draw what a detector, segmentor or classifier finds in images and videos; print the most likely classes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from repnext_mm._files import drafted
from repnext_mm.apis import annotate_frames, annotate_images
from repnext_mm.apis.image_file import found_images
from repnext_mm.cli import options
from repnext_mm.errors import UserError
from repnext_mm.export.predict import (
    Prediction,
    class_map,
    coco_results,
    copied_video,
    free_names,
    image_ids,
    is_video,
    spare,
    video_names,
    write_image,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'image', nargs='+', help="image files, folders, quoted patterns ('in/*.jpg'), videos, or the number of a camera"
    )
    options.add_config(parser)
    options.add_checkpoint(parser)
    parser.add_argument('--out-dir', default='work_dirs/infer', help='images and videos go to OUT_DIR/vis/')
    parser.add_argument('--out', metavar='FILE', help='write detections as COCO results, as repnext predict does')
    parser.add_argument('--masks', metavar='DIR', help='write the class of each pixel as PNG (detectors: plus 1)')
    options.add_device(parser, default=None)
    parser.add_argument('--score-threshold', type=float, default=0.3, help='hide weaker detections')
    options.add_no_fuse(parser)
    options.add_ema(parser)
    options.add_trust_pickle(parser)
    options.add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    """Annotate the images and videos; 1 if any image failed."""
    settings = dict(
        device=args.device,
        score_threshold=args.score_threshold,
        fuse=not args.no_fuse,
        ema=args.ema,
        trust_pickle=args.trust_pickle,
        options=args.cfg_options,
    )
    keep, videos = Kept(args), list(dict.fromkeys(source for source in args.image if is_video(source)))
    clips, place = dict(zip(videos, video_names(videos), strict=True)), Path(args.out_dir, 'vis')
    spare(videos, place, (f'{name}.avi' for name in clips.values()), '--out-dir')
    failed = 0
    if given := [source for source in args.image if not is_video(source)]:
        images = found_images(given)
        ids = dict(zip(images, image_ids(images), strict=True))
        masks = dict(zip(images, free_names(f'{image.stem}.png' for image in images), strict=True))
        if args.masks is not None:
            spare(images, args.masks, masks.values(), '--masks')
        done = annotate_images(
            images,
            args.config,
            args.checkpoint,
            out_dir=args.out_dir,
            report=print,
            found=lambda image, sample: keep.add(ids[image], masks[image], sample),
            **settings,
        )
        for path in done.written:
            print(f'{"replaced" if path in done.replaced else "wrote"} {path}')
        for reason in done.failed.values():
            print(f'error: {reason}', file=sys.stderr)
        total, failed = len(done.written) + len(done.failed), len(done.failed)
        if total > 1:
            print(f'{len(done.written)} of {total} images annotated, {len(done.replaced)} in the place of earlier ones')
    for source, clip in clips.items():
        with copied_video(source, place / f'{clip}.avi') as (video, out, bar):
            for frame, sample in annotate_frames(video, args.config, args.checkpoint, **settings):
                name = f'{clip}_{bar.count:06}'
                keep.add(name, f'{name}.png', sample)
                out.write(frame)
                bar.step()
        print(f'wrote {out.path}')
    keep.write()
    return 1 if failed else 0


class Kept:
    """What ``--out`` and ``--masks`` ask for, of one image after the other."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._out, self._masks, self._threshold = args.out, args.masks, args.score_threshold
        self._results: list[dict[str, Any]] = []

    def add(self, image_id: str, mask: str, sample: Any) -> None:
        """Keep what a data sample of mmdet or mmseg says; ``mask`` is the name of the file for that.

        Raises:
            UserError: the model has no boxes, or no masks.
        """
        if self._out is None and self._masks is None:
            return
        prediction = prediction_of(sample)
        if self._out is not None:
            if prediction.boxes is None:
                raise UserError('--out is for detectors: omit it')
            self._results += coco_results(prediction, image_id)
        if self._masks is not None:
            held = prediction.classes if prediction.classes is not None else prediction.masks
            size = (0, 0) if held is None else held.shape[-2:]
            Path(self._masks).mkdir(parents=True, exist_ok=True)
            write_image(
                Path(self._masks, mask),
                class_map(prediction, (size[0], size[1]), threshold=self._threshold),
            )

    def write(self) -> None:
        """Write the file of ``--out``."""
        if self._out is not None:
            with drafted(Path(self._out)) as draft:
                draft.write_text(json.dumps(self._results))
            print(f'wrote {self._out}')


def prediction_of(sample: Any) -> Prediction:
    """What a data sample of mmdet or mmseg holds, as arrays; of a classifier, nothing."""
    if 'pred_instances' in sample:
        found = sample.pred_instances.cpu().numpy()
        masks = np.asarray(found.masks, bool) if 'masks' in found else None
        return Prediction(boxes=found.bboxes, scores=found.scores, labels=found.labels, masks=masks)
    if 'pred_sem_seg' in sample:
        return Prediction(classes=sample.pred_sem_seg.data[0].cpu().numpy())
    return Prediction()
