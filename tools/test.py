"""Test a checkpoint: the backbone is fused while a config holds FuseBackboneHook."""

from __future__ import annotations

import argparse
import os

from mmengine.config import DictAction

from repnext_mm.apis import NotBuiltError, WeightsError, prepare_test, run_test


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--work-dir', help='where metrics and logs go (default: work_dirs/<config name>)')
    parser.add_argument('--out', help='write the predictions to this .pkl file')
    parser.add_argument('--show-dir', help='write annotated pictures to this folder')
    parser.add_argument(
        '--tta',
        action='store_true',
        help="test-time augmentation by the config's tta_model and tta_pipeline; of detectors, boxes only",
    )
    parser.add_argument('--no-fuse', action='store_true', help='test the trained form of the backbone')
    parser.add_argument('--ema', action='store_true', help='test the averaged weights of the file')
    parser.add_argument('--img-size', type=int, metavar='N', help='classification: pixels of the central crop')
    parser.add_argument(
        '--crop-pct',
        type=float,
        metavar='P',
        help="classification: the crop's share of the short edge, as timm's validate.py has it",
    )
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides such as data_root=/data/coco')
    parser.add_argument(
        '--trust-pickle', action='store_true', help='let checkpoints build any object, which can run any code in them'
    )
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help='set by torch.distributed.launch')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    try:
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
            options=args.cfg_options,
            launcher=args.launcher,
        )
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    try:
        run_test(config, trust_pickle=args.trust_pickle)
    except (NotBuiltError, WeightsError) as error:
        raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
    main()
