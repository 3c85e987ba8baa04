"""`python -m repnext_mm.mmcv_ops install|remove|status`: mmcv's operators without a compiler."""

from __future__ import annotations

import argparse
import sys

from repnext_mm.mmcv_ops import Operators, install, remove, status

SAYS = {
    'compiled': 'mmcv has compiled operators: {file}',
    'torchvision': "mmcv's operators run on torchvision and torch, by repnext_mm: {file}",
    'foreign': 'mmcv has operators that are neither compiled nor from repnext_mm: {file}',
    'none': 'mmcv has no operators, so `import mmcv.ops` fails: python -m repnext_mm.mmcv_ops install writes {file}',
}


def main() -> int:
    """Do what the command line asks, say which operators mmcv has then; 1 where that did not work."""
    parser = argparse.ArgumentParser(prog='python -m repnext_mm.mmcv_ops', description=__doc__)
    add_options(parser)
    return run(parser.parse_args())


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what ``run`` takes, also for `repnext ops`."""
    verbs = parser.add_subparsers(dest='verb', required=True)
    adding = verbs.add_parser('install', help='write mmcv/_ext.py, where mmcv has no compiled operators')
    adding.add_argument(
        '--set-aside',
        action='store_true',
        help='rename compiled operators that do not load, such as those for another torch',
    )
    verbs.add_parser('remove', help='remove that file')
    verbs.add_parser('status', help='say which operators mmcv has')


def run(args: argparse.Namespace) -> int:
    """Install, remove or only look, then say what is there."""
    try:
        found: Operators = {
            'install': lambda: install(set_aside=args.set_aside),
            'remove': remove,
            'status': status,
        }[args.verb]()
    except (FileExistsError, ModuleNotFoundError, PermissionError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(SAYS[found.kind].format(file=found.file))
    return 0


if __name__ == '__main__':
    sys.exit(main())
