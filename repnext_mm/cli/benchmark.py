"""Time RepNeXt in its forms, and its peers, interleaved and proved equal first; whole models; training."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from repnext_mm.cli import options
from repnext_mm.data.own.new_config import configs_folder
from repnext_mm.errors import UserError
from repnext_mm.lab.bench.gpu_records import gpu_rows, run_rows
from repnext_mm.lab.bench.jobs import parse_shape, run_jobs
from repnext_mm.lab.bench.networks import AUTO, PARTS, PEERS, TRAIN_FORM, variants
from repnext_mm.lab.bench.record import read_record
from repnext_mm.lab.bench.runtimes import DTYPES, MEMORY_FORMATS, RUNTIMES
from repnext_mm.lab.bench.session import FIRST_BATCH, SEARCH, measure_repeatedly, plan_inference, render, training_calls
from repnext_mm.lab.bench.training import SHAPES
from repnext_mm.lab.bench.whole_files import measure_whole_files
from repnext_mm.lab.bench.whole_model import measure_whole_model
from repnext_mm.lab.bench.whole_step import BACKBONES, measure_whole_step
from repnext_mm.models import FORMS
from repnext_mm.models.repnext import ARCHITECTURES

TRAIN_SHAPE = '512'
TIMED = ('device', 'threads', 'tf32', 'rounds', 'repeats', 'warmup_s', 'warmup_rounds', 'output')
NETWORKS = ('arch', 'shape')
SETTINGS = ('runtime', 'dtype', 'memory_format')
MODEL = ('checkpoint', 'cfg_options', 'trust_pickle')
READ = {
    'without --train or --config': (*TIMED, *SETTINGS, *NETWORKS, 'forms', 'peers', 'part', 'throughput', 'resume'),
    'with --train': (*TIMED, *SETTINGS, *NETWORKS, 'train'),
    'with --train CONFIG': (*TIMED, *MODEL, *SETTINGS, 'train', 'backbones', 'cpu_time'),
    'with --config': (*TIMED, *MODEL, 'config', 'image', 'files'),
    'with --gpu-records': ('gpu_records', 'device'),
    'with --render': ('render',),
}
"""What is read in each way to call it."""


def add_options(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group('what is timed')
    what.add_argument(
        '--arch', nargs='*', default=['m1', 'm4'], metavar='ARCH', help=f'from {", ".join(ARCHITECTURES)}'
    )
    what.add_argument(
        '--forms',
        nargs='+',
        default=[TRAIN_FORM, *FORMS],
        metavar='FORM',
        help=f'from {TRAIN_FORM} (the train form in eval mode), {", ".join(FORMS)}, and {AUTO} (per stage, the fastest '
        f'in eager PyTorch); default: all but {AUTO}',
    )
    what.add_argument(
        '--peers', nargs='*', default=[], metavar='NAME', help=f'fused networks of timm, or all: {", ".join(PEERS)}'
    )
    what.add_argument(
        '--part',
        choices=PARTS,
        default='backbone',
        help="backbone (default): feature maps; classifier: all that the authors' speed_gpu.py times, to 1000 scores",
    )
    what.add_argument(
        '--shape',
        nargs='+',
        metavar='NxCxHxW',
        help=f'default: 1x3x224x224; with --train {TRAIN_SHAPE}, or by name: {", ".join(SHAPES)}',
    )
    what.add_argument(
        '--train',
        nargs='?',
        const=True,
        metavar='CONFIG',
        help="time training steps instead: of the backbones of --arch, or a config's whole steps, stage by stage",
    )
    what.add_argument(
        '--backbones',
        nargs='+',
        metavar='NAME',
        help=f"in --train CONFIG, from {', '.join(BACKBONES)}: the config's own, by its branches or merged (with a "
        '--checkpoint these alone), and others in its place; ratios are to the first row',
    )
    what.add_argument(
        '--config', nargs='+', default=[], help='time whole detectors or segmentors instead, part by part, in turn'
    )
    what.add_argument(
        '--checkpoint', help='weights of --config (default: random ones) or of --train CONFIG (default: initial ones)'
    )
    what.add_argument(
        '--files',
        nargs='+',
        metavar='FILE',
        help='with --config: exported files of it (.onnx, .xml), timed against PyTorch from image to result',
    )
    what.add_argument('--image', help='image file for --config; a synthetic one by default')
    options.add_cfg_options(what)
    options.add_trust_pickle(what)
    how = parser.add_argument_group('how')
    how.add_argument('--runtime', nargs='+', default=['eager'], metavar='RUNTIME', help=f'from {", ".join(RUNTIMES)}')
    how.add_argument('--dtype', nargs='+', default=['float32'], metavar='DTYPE', help=f'from {", ".join(DTYPES)}')
    how.add_argument(
        '--memory-format', nargs='+', default=['contiguous'], metavar='FORMAT', help=f'from {", ".join(MEMORY_FORMATS)}'
    )
    how.add_argument('--device', choices=('cpu', 'cuda'), help='default: cuda where there is a GPU')
    options.add_threads(how)
    how.add_argument(
        '--cpu-time',
        action='store_true',
        help="in --train CONFIG, count CPU time, not the wall clock's: for a machine that others use, with --threads 1",
    )
    how.add_argument('--tf32', action='store_true', help='let float32 run in TF32 on a GPU')
    how.add_argument('--rounds', type=int, help='timed calls of each variant (default: 30 on a CPU, 100 on a GPU)')
    how.add_argument('--repeats', type=int, default=3, help='processes per setting, to see the spread between them')
    how.add_argument('--warmup-s', type=float, default=2.0, help='shortest warm-up of all variants, in seconds')
    how.add_argument('--warmup-rounds', type=int, help='shortest warm-up in rounds (default: 10 on a CPU, 50 on a GPU)')
    how.add_argument(
        '--throughput',
        type=int,
        nargs='?',
        const=SEARCH,
        metavar='BATCH',
        help='time batches of this size too; without a size, the largest that fits all variants '
        f'(halved from {FIRST_BATCH["cuda"]} on a GPU, {FIRST_BATCH["cpu"]} on a CPU)',
    )
    out = parser.add_argument_group('where results go')
    out.add_argument(
        '--output',
        metavar='DIR/NAME',
        help='writes NAME.json after each process, at the end NAME.md and NAME.RUNTIME.png; default: '
        'work_dirs/benchmark/ and inference, training, whole_step, whole_model or whole_files',
    )
    out.add_argument('--resume', action='store_true', help='go on with DIR/NAME.json after an interruption')
    out.add_argument(
        '--gpu-records',
        metavar='DIR',
        help='run every row that needs a GPU, in ten minutes, and write its records into DIR; a second call goes on; '
        'with --device cpu the same plan at tiny sizes',
    )
    out.add_argument('--render', metavar='FILE.json', help='only write the table and the plots of a record again')


def run(args: argparse.Namespace) -> int:
    """Measure, or render a record; 1 if a process failed."""
    if args.files and (args.train or not args.config):
        raise UserError('--files are compared with the model of a --config: give that, and no --train')
    way = way_of(args)
    every = sorted({name for names in READ.values() for name in names})
    options.refuse_unread(args, add_options, [name for name in every if name not in READ[way]], way)
    try:
        if args.render:
            print_files(render(read_record(args.render), Path(args.render)))
            return 0
        if args.gpu_records:
            return run_gpu_records(args)
        return run_other(args) if args.train or args.config else run_inference(args)
    except KeyboardInterrupt:
        if 'resume' in READ[way]:
            print('stopped; the same command with --resume goes on', file=sys.stderr)
        raise


def way_of(args: argparse.Namespace) -> str:
    if args.render:
        return 'with --render'
    if args.gpu_records:
        return 'with --gpu-records'
    if args.train:
        return 'with --train' if args.train is True else 'with --train CONFIG'
    return 'with --config' if args.config else 'without --train or --config'


def run_gpu_records(args: argparse.Namespace) -> int:
    device = how_of(args)['device']
    parser = argparse.ArgumentParser()
    add_options(parser)

    def measure(arguments: Sequence[str]) -> int:
        given = parser.parse_args(list(arguments))
        given.called = [*args.called[:2], *arguments]
        return run(given)

    rows = gpu_rows(configs_folder(), tiny=device == 'cpu')
    found = run_rows(rows, args.gpu_records, measure, device=device)
    for name, result in found.items():
        print(f'{name}: {result}')
    return int(any(result.startswith('failed') for result in found.values()))


def run_inference(args: argparse.Namespace) -> int:
    path = output_of(args, 'inference')
    peers = PEERS if args.peers == ['all'] else args.peers
    planned = plan_inference(
        variants(args.arch, args.forms if args.arch else [], peers, part=args.part),
        path,
        runtimes=args.runtime,
        shapes=[parse_shape(shape) for shape in args.shape or ['1x3x224x224']],
        dtypes=args.dtype,
        memory_formats=args.memory_format,
        throughput=args.throughput,
        resume=args.resume,
        **how_of(args),
    )
    for line in planned.record['skipped']:
        print(f'left out: {line}')
    with progress_bar() as bar:
        task = bar.add_task('starting', total=planned.steps)
        failures = run_jobs(
            planned.jobs,
            planned.record,
            path,
            repeats=planned.repeats,
            progress=lambda text, made: bar.update(task, description=text, advance=made),
        )
    for line in failures:
        print(f'failed: {line}')
    print_files(render(read_record(path), path))  # rounded, as it will be read again
    return 1 if failures else 0


def run_other(args: argparse.Namespace) -> int:
    if len(args.config) > 1 and (args.files or args.checkpoint):
        raise UserError(f'--config names {len(args.config)} configs: with --checkpoint or --files, name one')
    whole = 'whole_files' if args.files else 'whole_model'
    kind = whole if not args.train else 'training' if args.train is True else 'whole_step'
    path = output_of(args, kind)
    with progress_bar() as bar:

        def progress(steps: int) -> Callable[[], object]:
            return partial(bar.update, bar.add_task(kind, total=steps), advance=1)

        table = measure_repeatedly(calls_of(args), path, kind=kind, progress=progress, **how_of(args))
    print(table, f'\nwrote {path} and {path.with_suffix(".md")}')
    return 0


def calls_of(args: argparse.Namespace) -> list[Callable[..., Any]]:
    if isinstance(args.train, str):
        return [
            partial(
                measure_whole_step,
                args.train,
                args.checkpoint,
                backbones=args.backbones,
                runtimes=args.runtime,
                memory_formats=args.memory_format,
                dtypes=args.dtype,
                cpu_time=args.cpu_time,
                options=args.cfg_options,
                trust_pickle=args.trust_pickle,
            )
        ]
    if args.train:
        return training_calls(
            args.arch,
            runtimes=args.runtime,
            shapes=[SHAPES.get(shape) or parse_shape(shape) for shape in args.shape or [TRAIN_SHAPE]],
            dtypes=args.dtype,
            memory_formats=args.memory_format,
        )
    measure = partial(measure_whole_files, args.files) if args.files else measure_whole_model
    return [
        partial(
            measure,
            config,
            args.checkpoint,
            image=args.image,
            options=args.cfg_options,
            trust_pickle=args.trust_pickle,
        )
        for config in args.config
    ]


def how_of(args: argparse.Namespace) -> dict[str, Any]:
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise UserError('--device cuda: PyTorch sees no GPU here, choose --device cpu')
    named = ('threads', 'tf32', 'rounds', 'warmup_rounds', 'warmup_s', 'repeats')
    return {
        'device': args.device or options.best_device(),
        'command': shlex.join(args.called),
        **{name: getattr(args, name) for name in named},
    }


def output_of(args: argparse.Namespace, kind: str) -> Path:
    return Path(f'{args.output or f"work_dirs/benchmark/{kind}"}.json')


def progress_bar() -> Progress:
    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))


def print_files(files: list[Path]) -> None:
    for file in files:
        print(f'wrote {file}')
