"""Check your own data as training and scoring will see them."""

from __future__ import annotations

import argparse
from pathlib import Path

from repnext_mm.data.own.check import TASKS, check_data


def add_options(parser: argparse.ArgumentParser) -> None:
    add_data_options(parser)


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """What says where the data are and how to read them."""
    parser.add_argument(
        '--task', required=True, choices=TASKS, help='boxes (COCO, YOLO, VOC, labelme, ...), maps, folders'
    )
    parser.add_argument('--data', required=True, metavar='ROOT', help='the folder that holds all of the data')
    parser.add_argument('--classes', help='names, separated by commas (needed for seg; other data name them)')
    parser.add_argument(
        '--reduce-zero-label', action='store_true', help='seg: the value 0 is ignored, 1 is the first class'
    )
    parser.add_argument(
        '--map-suffix', metavar='END', help="seg: what names of maps end in, where several fit, such as '_labelIds.png'"
    )
    parser.add_argument('--boxes-only', action='store_true', help='det: do not look at masks; train on boxes alone')


def names_of(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(',')]


def run(args: argparse.Namespace) -> int:
    """Report what the check found; 1 if there are errors."""
    findings = check_data(
        args.task,
        Path(args.data).resolve(),
        classes=names_of(args.classes),
        boxes_only=args.boxes_only,
        reduce_zero_label=args.reduce_zero_label,
        map_suffix=args.map_suffix,
    )
    print(findings.report())
    return 1 if findings.errors else 0
