"""`repnext VERB`: each verb is a module with its options and its call; nothing is imported before a verb needs it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from repnext_mm.errors import MissingPackageError, UserError
from repnext_mm.version import __version__

SHELLS = ('bash', 'zsh')
INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended
BARE = (
    'check env',
    'ops',
    'predict',
    'weights',
)  # verbs that do without torch, or without what may not be installed yet


class Verb(NamedTuple):
    """Where a verb's ``add_options(parser)`` and ``run(args)`` are, and what the list of verbs says about it."""

    module: str
    line: str


VERBS = {
    'train': Verb('repnext_mm.cli.train', 'train a detector, segmentor or classifier'),
    'test': Verb('repnext_mm.cli.test', 'measure a checkpoint on the test data, fused'),
    'infer': Verb('repnext_mm.cli.infer', 'draw what a model finds in images'),
    'fuse': Verb('repnext_mm.cli.fuse', 'write fused weights and their config'),
    'export': Verb('repnext_mm.cli.export', 'write ONNX, TorchScript, OpenVINO or Core ML, in int8 too'),
    'predict': Verb('repnext_mm.export.predict', 'run an exported file on images, without torch'),
    'checkpoint': Verb('repnext_mm.cli.checkpoint', 'inspect, convert, fuse or compare weight files'),
    'weights': Verb('repnext_mm.cli.weights', "list, download, verify the authors' weights"),
    'publish': Verb('repnext_mm.cli.publish', 'write a folder for a model hub: weights, card, configs'),
    'check env': Verb('repnext_mm.cli.check_env', 'say what is wrong with this environment'),
    'check data': Verb('repnext_mm.cli.check_data', 'say what is wrong with your own data'),
    'new-config': Verb('repnext_mm.cli.new_config', 'check your own data and write a config for them'),
    'benchmark': Verb('repnext_mm.cli.benchmark', 'time forms, peers, whole models, training'),
    'complexity': Verb('repnext_mm.cli.complexity', 'count parameters and MACs'),
    'profile': Verb('repnext_mm.cli.profile', "show where a backbone's time goes"),
    'validate': Verb('repnext_mm.cli.validate', 'prove that a fused model equals its train form'),
    'visualize': Verb('repnext_mm.cli.visualize', 'draw features, kernels, receptive fields, CAMs'),
    'plot-logs': Verb('repnext_mm.cli.plot_logs', 'draw losses and metrics of trainings'),
    'plot-zoo': Verb('repnext_mm.cli.plot_zoo', 'draw accuracy against latency or epochs'),
    'draw-laws': Verb('repnext_mm.cli.draw_laws', 'draw the laws of re-parameterization'),
    'demo': Verb('repnext_mm.cli.demo', 'train on digits, fuse, compare, draw'),
    'demo-reparam': Verb('repnext_mm.cli.demo_reparam', 'fold a RepVGG and a RepNeXt, compare them'),
    'demo-app': Verb('repnext_mm.cli.demo_app', 'open a page in the browser for your images'),
    'make-digit-scenes': Verb('repnext_mm.cli.make_digit_scenes', 'make the data of the digits configs'),
    'ops': Verb('repnext_mm.mmcv_ops.__main__', "install or remove mmcv's operators without a compiler"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The console command ``repnext``, and ``python -m repnext_mm``."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    run(lambda: _dispatched(words))


def tool(verb: str) -> None:
    """Run a verb as the script that was started, ``tools/NAME.py``."""
    script = Path(sys.argv[0])
    run(lambda: _run_verb(verb, sys.argv[1:], prog=script.name, called=f'python tools/{script.name}'))


def run(main: Callable[[], int | None]) -> None:
    """Call a command: a user's mistake ends it with one sentence and status 1, any other error keeps its traceback.

    Raises:
        SystemExit: the command did not end with status 0.
    """
    try:
        status = main()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        if not is_mistake(error):
            raise
        raise SystemExit(f'error: {error}') from error
    if status:
        raise SystemExit(status)


def is_mistake(error: Exception) -> bool:
    """Whether a user caused it: a ``UserError``, or what the system says about a file that was named."""
    return isinstance(error, UserError) or (isinstance(error, OSError) and error.filename is not None)


def parser_of(verb: str, *, prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of a verb."""
    module = _module(verb)
    parser = argparse.ArgumentParser(prog=prog or f'repnext {verb}', description=module.__doc__)
    module.add_options(parser)
    return parser


def _dispatched(words: Sequence[str]) -> int | None:
    first = words[0] if words else '--help'
    verb = next((name for name in (' '.join(words[:2]), first) if name in VERBS), None)
    if verb is not None:
        return _run_verb(verb, words[len(verb.split()) :], prog=f'repnext {verb}', called=f'repnext {verb}')
    if first in ('-h', '--help'):
        print(_help_screen())
    elif first == '--version':
        print(f'repnext_mm {__version__}')
    elif first == '--completion':
        print(_completion(words[1:]))
    elif below := [name for name in VERBS if name.startswith(f'{first} ')]:
        raise UserError(f'{first} needs a second word: {" or ".join(below)}')
    else:
        near = get_close_matches(first, VERBS, n=1, cutoff=0.5)
        hint = f', did you mean {near[0]!r}? Choose' if near else ', choose'
        raise UserError(f'there is no verb {first!r}{hint} from {", ".join(VERBS)}')
    return 0


def _run_verb(verb: str, words: Sequence[str], *, prog: str, called: str) -> int | None:
    args = parser_of(verb, prog=prog).parse_args(words)
    args.called = [*called.split(), *words]  # for records of how something was measured
    status: int | None = _module(verb).run(args)
    return status


def _module(verb: str) -> Any:
    try:
        if verb not in BARE:
            import_module('repnext_mm._registered')  # a config may name anything
        return import_module(VERBS[verb].module)
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition('.')[0] == 'repnext_mm':
            raise
        raise MissingPackageError(
            f'{verb} needs the package {error.name}, and it is not installed: repnext check env says what to do'
        ) from error


def _help_screen() -> str:
    width = max(map(len, VERBS)) + 2
    return '\n'.join(
        [
            'usage: repnext VERB ... (see repnext VERB --help) | --version | --completion SHELL',
            *(f'  {name:{width}}{verb.line}' for name, verb in VERBS.items()),
        ]
    )


def _completion(words: Sequence[str]) -> str:
    """A shell's script that completes verbs, options, choices and files; imports every verb."""
    if len(words) != 1 or words[0] not in SHELLS:
        raise UserError(f'--completion {" ".join(words)}: name one of {", ".join(SHELLS)}')
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "--completion needs the package shtab: pip install 'repnext_mm[completion]'"
        ) from error
    parser = argparse.ArgumentParser(prog='repnext', description='RepNeXt for OpenMMLab 2.x.')
    verbs = parser.add_subparsers(metavar='VERB')
    groups: dict[str, Any] = {}
    for name, verb in VERBS.items():
        group, _, last = name.rpartition(' ')
        if group and group not in groups:
            groups[group] = verbs.add_parser(group, help=f'{group} ...').add_subparsers()
        _module(name).add_options(groups.get(group, verbs).add_parser(last, help=verb.line))
    _prepare(parser, shtab.FILE)
    script: str = shtab.complete(parser, shell=words[0])
    return script


def _prepare(parser: argparse.ArgumentParser, files: object) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _prepare(below, files)
        elif action.choices is not None:
            action.choices = list(action.choices)  # shtab takes a dict for subparsers
        elif action.nargs != 0:
            action.complete = files  # type: ignore[attr-defined]
