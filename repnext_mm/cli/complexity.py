"""Count parameters and multiply-accumulates (MACs), of RepNeXt in every form or of a config's whole model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from repnext_mm.apis import load_config
from repnext_mm.apis.safe_loading import reading_safely
from repnext_mm.cli import options
from repnext_mm.lab.bench.complexity import Complexity, model_complexity, repnext_complexity
from repnext_mm.lab.table import markdown_table
from repnext_mm.models import ARCHITECTURES, FORMS

SHAPES = {'mmdet': (800, 1344), 'mmseg': (512, 512)}  # COCO's and ADE20K's; otherwise ImageNet's
Counts = dict[str, dict[str, dict[str, Complexity]]]  # arch or config, form, part


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', nargs='?', help='config of a detector, segmentor or classifier; no weights needed')
    parser.add_argument(
        '--arch', nargs='+', default=list(ARCHITECTURES), help='without a config: backbone and ImageNet classifier'
    )
    parser.add_argument(
        '--forms', nargs='+', default=FORMS, metavar='FORM', help='besides the train form (default: all)'
    )
    parser.add_argument('--num-classes', type=int, default=1000, help='classes of that classifier')
    parser.add_argument(
        '--shape', type=int, nargs=2, metavar=('H', 'W'), help='default: 800 1344 (mmdet), 512 512 (mmseg), 224 224'
    )
    parser.add_argument('--json', metavar='FILE', help='write the counts to this file too')
    options.add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    unread, when = (('arch', 'num_classes'), 'with a config') if args.config else (('cfg_options',), 'without a config')
    options.refuse_unread(args, add_options, unread, when)
    with reading_safely():
        shape, found = count(args)
    if args.json:
        counts = {
            name: {form: {part: asdict(value) for part, value in parts.items()} for form, parts in forms.items()}
            for name, forms in found.items()
        }
        Path(args.json).write_text(json.dumps({'shape': shape, 'counts': counts}, indent=2) + '\n')
    print(f'One image of {shape[0]}x{shape[1]}; MACs of convolutions and linear layers.\n')
    print(table(found))
    if args.json:
        print(f'\nwrote {args.json}')


def count(args: argparse.Namespace) -> tuple[tuple[int, int], Counts]:
    if args.config:
        config = load_config(args.config, options=args.cfg_options)
        shape = tuple(args.shape or SHAPES.get(config.get('default_scope'), (224, 224)))
        return shape, {Path(args.config).stem: model_complexity(config, shape=shape, forms=args.forms)}
    shape = tuple(args.shape or (224, 224))
    settings = dict(shape=shape, num_classes=args.num_classes, forms=args.forms)
    return shape, {arch: repnext_complexity(arch, **settings) for arch in args.arch}


def table(found: Counts) -> str:
    parts = list(next(iter(next(iter(found.values())).values())))
    kinds = [f'{part} {kind}' for kind in ('parameters', 'MACs') for part in parts]
    rows = [[name, form, *numbers(counts)] for name, forms in found.items() for form, counts in forms.items()]
    return markdown_table(['', 'form', *kinds, f'{parts[-1]} norms'], rows, texts=2)


def numbers(counts: Mapping[str, Complexity]) -> Iterable[str]:
    yield from (f'{part.parameters:,}' for part in counts.values())
    yield from (f'{part.macs:,}' for part in counts.values())
    yield str(list(counts.values())[-1].norms)  # the last part is the whole
