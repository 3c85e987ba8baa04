"""Options that several verbs have, each with one name and one sentence."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable

import torch
from mmengine.config import DictAction

from repnext_mm.errors import UserError

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


def refuse_unread(
    args: argparse.Namespace, add_options: Callable[[argparse.ArgumentParser], None], unread: Iterable[str], when: str
) -> None:
    """Refuse an option that was given and that nothing reads: one result would be taken for another.

    Args:
        add_options: of the verb; an option with its default was not given.
        unread: names of ``args``.
        when: nothing reads them, at the end of the sentence: 'with --train'.

    Raises:
        UserError: there is one.
    """
    parser = argparse.ArgumentParser()
    add_options(parser)
    for name in unread:
        if getattr(args, name) != parser.get_default(name):
            raise UserError(f'--{name.replace("_", "-")} is not read {when}: omit it')


def add_config(parser: argparse._ActionsContainer) -> None:
    parser.add_argument('config', help='config file')


def add_checkpoint(parser: argparse._ActionsContainer) -> None:
    parser.add_argument('checkpoint', help='checkpoint file')


def add_trust_pickle(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        '--trust-pickle', action='store_true', help='let weight files build any object, which can run any code in them'
    )


def add_ema(parser: argparse._ActionsContainer) -> None:
    parser.add_argument('--ema', action='store_true', help='take the averaged weights of the file')


def add_no_fuse(parser: argparse._ActionsContainer) -> None:
    parser.add_argument('--no-fuse', action='store_true', help='run the train form of the backbone')


def add_cfg_options(parser: argparse._ActionsContainer, *, examples: str = '') -> None:
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help=f'overrides of the config{examples}'
    )


def add_memory_format(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        '--memory-format',
        choices=('channels_last', 'contiguous'),
        help="layout of weights and features (default: the config's, which is contiguous without MemoryFormatHook)",
    )


def add_device(parser: argparse._ActionsContainer, *, default: str | None) -> None:
    parser.add_argument('--device', default=default, help="such as 'cpu' or 'cuda:0' (default: the best there is)")


def best_device() -> str:
    return 'cuda' if torch.cuda.is_available() else 'cpu'


def check_device(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (AssertionError, RuntimeError) as error:
        raise UserError(f"--device '{name}' cannot be used here ({str(error).splitlines()[0]}): choose cpu") from error


def add_threads(parser: argparse._ActionsContainer) -> None:
    parser.add_argument('--threads', type=int, help='CPU threads (default: as many as PyTorch takes)')


def add_launcher(parser: argparse._ActionsContainer) -> None:
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none', help='what started the processes')
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help='set by torch.distributed.launch')


def use_local_rank(args: argparse.Namespace) -> None:
    """Hand ``--local-rank`` of old launchers on to mmengine; what a launcher of today has set counts."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
