"""Train a detector, segmentor or classifier from a config file."""

from __future__ import annotations

import argparse

from repnext_mm.apis import prepare_training, run_training
from repnext_mm.apis.trackers import TRACKERS
from repnext_mm.cli import options


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_config(parser)
    parser.add_argument('--work-dir', help='where logs and checkpoints go (default: work_dirs/<config name>)')
    parser.add_argument('--amp', action='store_true', help='mixed precision: float16 on a GPU, bfloat16 on a CPU')
    options.add_memory_format(parser)
    parser.add_argument(
        '--compile', action='store_true', help="compile the backbone's training step (needs a compiler)"
    )
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help="scale the rate by this run's batch over auto_scale_lr's"
    )
    parser.add_argument(
        '--tracker',
        dest='trackers',
        nargs='+',
        choices=sorted(TRACKERS),
        default=(),
        help='report to these too, with some validation images (set their options in visualizer.vis_backends)',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from this checkpoint; without a value, from the newest one in the working directory',
    )
    options.add_cfg_options(
        parser, examples=', such as data_root=/data/coco train_dataloader.batch_size=4 model.neck.in_channels="[1,2]"'
    )
    options.add_trust_pickle(parser)
    options.add_launcher(parser)


def run(args: argparse.Namespace) -> None:
    options.use_local_rank(args)
    config = prepare_training(
        args.config,
        work_dir=args.work_dir,
        amp=args.amp,
        memory_format=args.memory_format,
        compile=args.compile,
        auto_scale_lr=args.auto_scale_lr,
        trackers=args.trackers,
        resume=args.resume,
        options=args.cfg_options,
        launcher=args.launcher,
    )
    run_training(config, trust_pickle=args.trust_pickle)
