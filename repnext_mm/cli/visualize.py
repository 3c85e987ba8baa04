"""See what a network is and does: design, features, kernels, receptive fields, predictions, activation maps."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from repnext_mm.cli import options
from repnext_mm.errors import UserError
from repnext_mm.lab.draw.cam import METHODS, activation_map, draw_activation_maps
from repnext_mm.lab.draw.cam_sheet import PAPER, draw_cam_sheet, load_detectors
from repnext_mm.lab.draw.design import draw_design
from repnext_mm.lab.draw.features import draw_features
from repnext_mm.lab.draw.kernels import draw_kernels
from repnext_mm.lab.draw.predictions import draw_predictions
from repnext_mm.lab.draw.receptive_field import compare_receptive_fields
from repnext_mm.lab.draw.subject import Subject, load_subject, see


def add_options(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest='command', required=True)

    features = _command(commands, 'features', features_of, 'the four chunks of a token mixer, before and after fusing')
    features.add_argument('image', help='image file')
    features.add_argument('--block', default='stages.0.blocks.1', help="which of the backbone's blocks")

    kernels = _command(commands, 'kernels', kernels_of, 'branches and effective kernel of every rep block')
    kernels.add_argument('--stages', type=int, nargs='+', help='only these, counted from 0')
    kernels.add_argument(
        '--channel', type=int, help='channel of each kernel, with its sign (default: mean of |w| over all)'
    )

    erf = _command(commands, 'erf', receptive_fields_of, 'effective receptive field of the center unit of each level')
    erf.add_argument('--images', nargs='+', help='image files of one size (default: noise)')
    erf.add_argument('--count', type=int, default=8, help='number of noise images')
    erf.add_argument('--size', type=int, default=224, help='side of noise images, in pixels')
    erf.add_argument('--beside-random', action='store_true', help='a second row: the same network with random weights')

    predictions = _command(commands, 'predictions', predictions_of, 'results beside the truth, from the test data')
    predictions.add_argument('--count', type=int, default=6, help='number of images')
    options.add_no_fuse(predictions)

    cam = _command(commands, 'cam', cam_of, 'class activation maps (needs grad-cam)')
    cam.add_argument('image', help='image file')
    cam.add_argument('--methods', nargs='+', default=['gradcam'], choices=METHODS)
    cam.add_argument(
        '--layers', nargs='+', default=['stages.3'], help='layers of the backbone; a finer one for small objects'
    )
    cam.add_argument('--label', help='class name (default: what the model sees most of)')

    cams = _command(commands, 'cams', cams_of, 'cam of detectors that differ in the backbone only')
    cams.add_argument('images', nargs='+', help='image files, a row each')
    cams.add_argument('--networks', nargs='+', default=PAPER, help='repnext_m0 and so on, or names of timm')
    cams.add_argument(
        '--weights', nargs='+', default=[], metavar='NETWORK=FILE', help='weights of the detectors (default: random)'
    )
    cams.add_argument('--method', default='gradcam', choices=METHODS)
    cams.add_argument('--level', type=int, default=3, help='level of the backbone, 0 (stride 4) to 3 (stride 32)')
    cams.add_argument('--label', help='class name (default: that of the best box of each detector)')
    cams.add_argument('--save-configs', type=Path, help='folder for a config of each network, to train it')

    design = commands.add_parser(
        'design', help='figures of the architecture', description='Draw three figures of the architecture.'
    )
    design.set_defaults(draw=design_of)
    design.add_argument('--arch', default='m4', help='which RepNeXt')
    design.add_argument('--out', type=Path, default=Path('work_dirs/visualize'), help='folder for the PNG files')


def _command(
    commands: Any, name: str, draw: Callable[[argparse.Namespace], Path], text: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.set_defaults(draw=draw)
    command.add_argument('--config', help='config of a trained model')
    if name != 'cams':
        command.add_argument('--checkpoint', help='its weights, in train form')
    if name in ('features', 'kernels', 'erf'):
        command.add_argument('--arch', default='m0', help='without a config: a RepNeXt with random weights')
    command.add_argument('--out', type=Path, default=Path(f'work_dirs/visualize/{name}.png'), help='PNG file')
    options.add_trust_pickle(command)
    options.add_cfg_options(command)
    return command


def run(args: argparse.Namespace) -> None:
    written = args.draw(args)
    for path in written if isinstance(written, list) else [written]:
        print(f'wrote {path}')


def subject_of(args: argparse.Namespace) -> Subject:
    return load_subject(
        args.config,
        args.checkpoint,
        arch=getattr(args, 'arch', 'm0'),
        trust_pickle=args.trust_pickle,
        options=args.cfg_options,
    )


def features_of(args: argparse.Namespace) -> Path:
    subject = subject_of(args)
    seen = see(subject, args.image)
    return draw_features(subject.backbone, seen.inputs, seen.image, args.out, block=args.block, title=subject.name)


def kernels_of(args: argparse.Namespace) -> Path:
    subject = subject_of(args)
    return draw_kernels(subject.backbone, args.out, title=subject.name, stages=args.stages, channel=args.channel)


def receptive_fields_of(args: argparse.Namespace) -> Path:
    return compare_receptive_fields(
        subject_of(args),
        args.out,
        images=args.images or (),
        count=args.count,
        size=args.size,
        beside_random=args.beside_random,
    )


def predictions_of(args: argparse.Namespace) -> Path:
    if args.config is None or args.checkpoint is None:
        raise UserError('predictions need --config and --checkpoint')
    return draw_predictions(
        args.config,
        args.checkpoint,
        args.out,
        count=args.count,
        fuse=not args.no_fuse,
        trust_pickle=args.trust_pickle,
        options=args.cfg_options,
    )


def cam_of(args: argparse.Namespace) -> Path:
    subject = subject_of(args)
    seen = see(subject, args.image)
    maps = [
        activation_map(subject, seen, method=method, layer=layer, label=args.label)
        for layer in args.layers
        for method in args.methods
    ]
    return draw_activation_maps(seen.image, maps, args.out, title=subject.name)


def cams_of(args: argparse.Namespace) -> Path:
    if args.config is None:
        raise UserError('cams needs --config, of a Mask R-CNN: its backbone is replaced by each of --networks')
    pairs = [pair.partition('=') for pair in args.weights]
    if unclear := next((''.join(pair) for pair in pairs if not pair[0] or not pair[2]), None):
        raise UserError(f"--weights '{unclear}' must be NETWORK=FILE, such as repnext_m5=repnext_m5_coco.pth")
    subjects = load_detectors(
        args.config,
        args.networks,
        {name: file for name, _, file in pairs},
        trust_pickle=args.trust_pickle,
        options=args.cfg_options,
        save_configs=args.save_configs,
    )
    title = f'{Path(args.config).stem} with each backbone: {METHODS[args.method]} of level {args.level}'
    return draw_cam_sheet(
        subjects, args.images, args.out, title=title, method=args.method, level=args.level, label=args.label
    )


def design_of(args: argparse.Namespace) -> list[Path]:
    return draw_design(args.arch, args.out)
