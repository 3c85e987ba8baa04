"""Write fused weights of a whole model, and the config that loads them; the outputs are compared first."""

from __future__ import annotations

import argparse

from repnext_mm.apis.weight_files import fuse_file
from repnext_mm.checkpoints import published_name
from repnext_mm.cli import options


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_trust_pickle(parser)
    add_publish(parser)
    options.add_ema(parser)
    parser.add_argument('file', help='weights of the whole model')
    parser.add_argument('config', help='its config')
    parser.add_argument('out', help='.pth, or .safetensors; the deploy config is written beside it')


def add_publish(parser: argparse._ActionsContainer) -> None:
    parser.add_argument('--publish', action='store_true', help="add the start of the file's SHA-256 to its name")


def run(args: argparse.Namespace) -> None:
    """Fuse the file and say how far its outputs are from those of the train form."""
    fused = fuse_file(args.file, args.config, args.out, ema=args.ema, trust_pickle=args.trust_pickle)
    print(fused.report)
    print('relative error per level, float64: ' + ', '.join(f'{error:.1e}' for error in fused.errors))
    weights = published_name(fused.weights) if args.publish else fused.weights
    print(f'wrote {weights} and {fused.config}')
