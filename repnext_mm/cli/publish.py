"""Write a folder for a model hub: safetensors, a card, the config, and timm's for a classifier; uploads nothing."""

from __future__ import annotations

import argparse

from repnext_mm.apis.publish import publish
from repnext_mm.cli import options


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_trust_pickle(parser)
    options.add_ema(parser)
    options.add_checkpoint(parser)
    parser.add_argument('folder', help='a new folder')
    parser.add_argument('--config', help='config of the whole model; a bare RepNeXt and its classifier need none')
    parser.add_argument(
        '--license', help="for the card, such as apache-2.0 (default: none, the authors' for their files)"
    )


def run(args: argparse.Namespace) -> None:
    written = publish(
        args.checkpoint,
        args.folder,
        config=args.config,
        license=args.license,
        ema=args.ema,
        trust_pickle=args.trust_pickle,
    )
    for path in written:
        print(path)
