"""See in the browser what a trained model finds in an image, its train form and fused form side by side."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from repnext_mm.lab.demo.app_inputs import given_pairs, pairs_under
from repnext_mm.lab.demo.app_page import build_page, serve


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('pairs', nargs='*', metavar='CONFIG CHECKPOINT', help='pairs of files to choose from')
    parser.add_argument(
        '--runs', type=Path, help='offer what training left in this folder (default: work_dirs, unless pairs are given)'
    )
    parser.add_argument('--port', type=int, help='default: the first free one from 7860')
    parser.add_argument('--open', action='store_true', help='open the page in the browser')


def run(args: argparse.Namespace) -> None:
    pairs = given_pairs(args.pairs)
    runs = args.runs or (None if pairs else Path('work_dirs'))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # as Ctrl-C does, so that the folder goes
    with tempfile.TemporaryDirectory(prefix='repnext_mm_') as folder:  # uploads end with the program
        os.environ['GRADIO_TEMP_DIR'] = folder
        page = build_page(lambda: {**pairs, **(pairs_under(runs) if runs else {})})
        print(f'open {serve(page, port=args.port, open_browser=args.open)} (Ctrl-C ends it)', flush=True)
        page.block_thread()
