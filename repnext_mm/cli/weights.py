"""List, download and verify the weights that the authors publish; every file option takes their names too."""

from __future__ import annotations

import argparse

from repnext_mm.checkpoints import PUBLISHED, is_whole_file, local_file
from repnext_mm.checkpoints.find import present
from repnext_mm.checkpoints.published import RELEASE, Published, published, similar
from repnext_mm.errors import UserError, WeightsError
from repnext_mm.lab.table import markdown_table


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=run_list)
    commands = parser.add_subparsers(metavar='COMMAND')

    listing = commands.add_parser('list', help='names, what they hold, accuracies, and where they are here (default)')
    listing.set_defaults(command=run_list)

    download = commands.add_parser('download', help='fetch what is not here yet, print the paths')
    download.add_argument('name', nargs='+', help='a name of the list, an address, or hf-hub:OWNER/NAME')
    download.set_defaults(command=run_download)

    verify = commands.add_parser('verify', help='check that files are whole and as they were when they came')
    verify.add_argument('name', nargs='*', help='a name of the list (default: all that are here)')
    verify.set_defaults(command=run_verify)


def run(args: argparse.Namespace) -> int | None:
    status: int | None = args.command(args)
    return status


def run_list(_: argparse.Namespace) -> None:
    rows = [(entry.name, entry.holds, reported(entry), *here(entry)) for entry in PUBLISHED.values()]
    print(markdown_table(('name', 'holds', 'reported', 'MB', 'here'), rows, texts=3))
    print(f'\nFrom {RELEASE}; accuracies are reported by the authors, sizes known once a file is here.')


def reported(entry: Published) -> str:
    return ', '.join(f'{metric} {value}' for metric, value in entry.reported.items())


def here(entry: Published) -> tuple[str, str]:
    """Size in MB and path of a file; of a damaged one in the cache, the way out is what ``verify`` says."""
    try:
        path = present(entry)
    except WeightsError:
        return '', 'changed: verify it'
    return ('', '') if path is None else (f'{path.stat().st_size / 1e6:.1f}', str(path))


def run_download(args: argparse.Namespace) -> None:
    for name in args.name:
        print(local_file(name))


def run_verify(args: argparse.Namespace) -> int:
    wrong = 0
    for entry in [named(name) for name in args.name] or PUBLISHED.values():
        try:
            path = present(entry)
        except WeightsError as error:
            path, said = None, str(error)
        else:
            said = f'{entry.name} is not here' if args.name else ''
        if path is not None and is_whole_file(path):
            print(f'{path}: whole')
        elif path is not None or said:
            wrong += 1
            print(said or f'{path}: not a whole weight file, remove it')
    return int(wrong > 0)


def named(name: str) -> Published:
    entry = published(name)
    if entry is None:
        raise UserError(f'{name!r} is not among the published names{similar(name)}: repnext weights lists them')
    return entry
