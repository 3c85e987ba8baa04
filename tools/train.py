"""Train a detector, segmentor or classifier from a config file."""

from __future__ import annotations

import argparse
import os

from mmengine.config import DictAction

from repnext_mm.apis import NotBuiltError, WeightsError, prepare_training, run_training
from repnext_mm.hooks import CheckpointNotSavedError, NoWholeCheckpointError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='where logs and checkpoints go (default: work_dirs/<config name>)')
    parser.add_argument('--amp', action='store_true', help='mixed precision (needs a GPU)')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help="scale the rate by this run's batch over auto_scale_lr's"
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from this checkpoint; without a value, from the newest one in the working directory',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='overrides such as data_root=/data/coco train_dataloader.batch_size=4 model.neck.in_channels="[1,2]"',
    )
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
        config = prepare_training(
            args.config,
            work_dir=args.work_dir,
            amp=args.amp,
            auto_scale_lr=args.auto_scale_lr,
            resume=args.resume,
            options=args.cfg_options,
            launcher=args.launcher,
        )
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    try:
        run_training(config, trust_pickle=args.trust_pickle)
    except (NotBuiltError, WeightsError, CheckpointNotSavedError, NoWholeCheckpointError) as error:
        raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
    main()
