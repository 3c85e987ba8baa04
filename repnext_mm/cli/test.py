"""Test a checkpoint, fused while a config holds FuseBackboneHook, or an exported file in its own runtime."""

from __future__ import annotations

import argparse

from repnext_mm.apis import prepare_test, run_test
from repnext_mm.cli import options

OF_A_CHECKPOINT = (
    *('work_dir', 'out', 'show_dir', 'tta', 'no_fuse', 'ema', 'img_size', 'crop_pct', 'memory_format'),
    *('trust_pickle', 'launcher'),
)
"""Options that the test of an exported file does not read."""


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_config(parser)
    options.add_checkpoint(parser)
    parser.add_argument('--images', type=int, metavar='N', help='with an exported file: test on N images only')
    parser.add_argument('--work-dir', help='where metrics and logs go (default: work_dirs/<config name>)')
    parser.add_argument('--out', help='write the predictions to this .pkl file')
    parser.add_argument('--show-dir', help='write annotated images to this folder')
    parser.add_argument(
        '--tta',
        action='store_true',
        help="test-time augmentation by the config's tta_model and tta_pipeline; detectors give boxes only",
    )
    options.add_no_fuse(parser)
    options.add_ema(parser)
    parser.add_argument('--img-size', type=int, metavar='N', help='classification: pixels of the central crop')
    parser.add_argument(
        '--crop-pct',
        type=float,
        metavar='P',
        help="classification: the crop's share of the short edge, as timm's validate.py has it",
    )
    options.add_memory_format(parser)
    options.add_cfg_options(parser, examples=', such as data_root=/data/coco')
    options.add_trust_pickle(parser)
    options.add_launcher(parser)


def run(args: argparse.Namespace) -> None:
    exported, config_path = exported_and_config(args)
    if exported is not None:
        options.refuse_unread(args, add_options, OF_A_CHECKPOINT, 'with an exported file')
        from repnext_mm.export.accuracy import evaluate_file

        metrics = evaluate_file(exported, config_path, images=args.images, options=args.cfg_options)
        print(', '.join(f'{name} {value:.4f}' for name, value in metrics.items()))
        return
    options.refuse_unread(args, add_options, ['images'], 'without an exported file')
    options.use_local_rank(args)
    config = prepare_test(
        args.config,
        args.checkpoint,
        work_dir=args.work_dir,
        out=args.out,
        show_dir=args.show_dir,
        tta=args.tta,
        fuse=not args.no_fuse,
        ema=args.ema,
        img_size=args.img_size,
        crop_pct=args.crop_pct,
        memory_format=args.memory_format,
        options=args.cfg_options,
        launcher=args.launcher,
    )
    run_test(config, trust_pickle=args.trust_pickle)


def exported_and_config(args: argparse.Namespace) -> tuple[str | None, str]:
    """The exported file, which may stand on either side; behind a config, a ``.pt`` is a checkpoint."""
    from repnext_mm.export.openers import format_by_name

    if format_by_name(args.config) is not None:
        return args.config, args.checkpoint
    behind = args.checkpoint and format_by_name(args.checkpoint) not in (None, 'torchscript')
    return args.checkpoint if behind else None, args.config
