"""Mutations of real weight files, thrown at everything that reads one; run as a script, in a process of its own.

An input passes when each reader returns a mapping, or raises a ValueError or FileNotFoundError of one printable line,
within seconds, without much memory, and without running code that stands in the file.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import signal
import time
import traceback
from collections import Counter
from pathlib import Path

import torch

from repnext_mm import RepNeXt
from repnext_mm.apis.weight_files import inspect_file
from repnext_mm.checkpoints import read_checkpoint, state_dict_of
from tests.reliability.fuzz_mutations import mutated, small_network, write_seeds

SECONDS = 5  # of computing, for one reading of one input
MEMORY = 2 << 30  # bytes more than the process has at the start


def judge(path: Path, model: RepNeXt) -> tuple[str, str]:
    """('read', 'refused' or 'defect', and what happened) for one file, by every reader."""
    readers = {
        'read': lambda: state_dict_of(read_checkpoint(path)),
        'inspect': lambda: inspect_file(path),
        'load': lambda: model.load_pretrained(str(path)),
    }
    outcome = 'read'
    for name, reader in readers.items():
        before = content(model)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            reader()
        except (ValueError, FileNotFoundError) as error:
            outcome, words = 'refused', str(error)
            if not words.isprintable() or not 20 < len(words) < 1500:
                return 'defect', f'{name}: no sentence: {words!r}'
            if 'MemoryError' in words or 'allocat' in words:
                return 'defect', f'{name}: asked for too much memory: {words}'
            if content(model) != before:
                return 'defect', f'{name}: a refused file changed the model'
        except BaseException:
            return 'defect', f'{name}: {traceback.format_exc()[-3000:]}'
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    if Path('canary').exists():
        return 'defect', 'code of the file was run'
    return outcome, ''


def content(model):
    """Bytes, since loaded numbers may be NaN: neither safetensors nor legacy files have checksums."""
    return [value.numpy().tobytes() for value in model.state_dict().values()]


class TooLong(BaseException):
    """No Exception, which readers may take for a damaged file."""


def _too_long(signum, frame):
    raise TooLong(f'more than {SECONDS} seconds')


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--count', type=int, required=True)
    parser.add_argument('--seed', type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    Path('seeds').mkdir()
    seeds = write_seeds(Path('seeds'))
    model = small_network()
    for name in seeds:
        assert read_checkpoint(Path('seeds') / name)
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    signal.signal(signal.SIGPROF, _too_long)
    report = {'outcomes': Counter(), 'kinds': Counter(), 'slowest_s': 0.0, 'defects': []}
    for index in range(options.count):
        name, kind, data = mutated(seeds, random.Random(f'{options.seed}-{index}'))
        path = Path('input' + Path(name).suffix)
        path.write_bytes(data)
        Path('last').write_text(f'{index} {name} {kind}')  # what a crash is found by
        start = time.process_time()
        outcome, words = judge(path, model)
        report['slowest_s'] = max(report['slowest_s'], time.process_time() - start)
        report['outcomes'][outcome] += 1
        report['kinds'][f'{name} {kind} {outcome}'] += 1
        if outcome == 'defect':
            report['defects'].append((index, name, kind, words))
            Path('canary').unlink(missing_ok=True)
            path.rename(f'defect-{options.seed}-{index}{path.suffix}')
    report['peak_mb'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    Path('report.json').write_text(json.dumps(report, indent=1))


if __name__ == '__main__':
    main()
