"""Real weight files of every kind, and ways to damage or poison them."""

from __future__ import annotations

import io
import pickle
import pickletools
import random
import struct
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file

from repnext_mm import RepNeXt
from repnext_mm.reparam import fuse
from tests.checkpoints import files
from tests.conftest import randomize

TINY = {'embed_dims': (8, 16, 32, 64), 'depths': (1, 1, 1, 1)}
GLOBALS = (
    ('tests.reliability.fuzz_mutations', 'canary'),
    ('posix', 'system'),
    ('builtins', 'eval'),
    ('builtins', 'exec'),
    ('torch', 'load'),
    ('torch.serialization', 'load'),
    ('numpy', 'load'),
    ('numpy.core.multiarray', '_reconstruct'),
    ('builtins', 'getattr'),
    ('collections', 'Counter'),
    ('torch._utils', '_rebuild_tensor_v2'),
    ('torch', 'Size'),
    ('argparse', 'Namespace'),
    ('argparse', 'FileType'),
    ('mmengine.logging.history_buffer', 'HistoryBuffer'),
    ('numpy', 'dtype'),
    ('numpy', 'ndarray'),
    ('_codecs', 'encode'),
    ('torch', 'UntypedStorage'),
    ('torch', 'float64'),
)
EXTREMES = (0, 1, -1, 255, 2**15, 2**31 - 1, 2**32 - 1, 2**40, 2**62, 2**63 - 1)


def canary(*arguments):
    """What no reader may call."""
    Path('canary').touch()


def small_network() -> RepNeXt:
    """A backbone of which one stage is left: files of every kind, each read in milliseconds."""
    model = RepNeXt(TINY)
    model.stages = model.stages[:1]
    return model


def write_seeds(folder: Path) -> dict[str, bytes]:
    """A real file of each kind that users have, with the weights of a small network."""
    torch.manual_seed(0)
    model = randomize(small_network()).eval()
    state = dict(model.state_dict())
    files.authors_training(folder / 'authors.pth', state | {'head.head.linear.bias': torch.zeros(10)})
    optimizer = torch.optim.AdamW(list(model.parameters())[:6])
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    history = HistoryBuffer()
    history.update(0.5)
    trained = {
        'meta': {'epoch': 1, 'iter': 7, 'mmengine_version': '0.10.7', 'dataset_meta': {'classes': ('a', 'b')}},
        'state_dict': {f'backbone.{key}': value for key, value in state.items()},
        'message_hub': {'log_scalars': {'loss': history}, 'runtime_info': {'eta': np.float64(3.5), 'n': np.int64(2)}},
        'optimizer': optimizer.state_dict(),
        'param_schedulers': [{'milestones': Counter([8, 11]), 'last_step': 1}],
    }
    torch.save(trained, folder / 'trained.pth')
    torch.save(trained, folder / 'legacy.pth', _use_new_zipfile_serialization=False)
    kept, _ = fuse(model, form='keep_norms')
    network = files.FusedClassifier(kept, torch.nn.Linear(8, 10)).eval()
    with torch.no_grad():
        torch.jit.trace(network, torch.randn(1, 3, 64, 64)).save(str(folder / 'fused.pt'))
    save_file({key: value.clone() for key, value in state.items()}, folder / 'plain.safetensors')
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def mutated(seeds: Mapping[str, bytes], rng: random.Random) -> tuple[str, str, bytes]:
    """The name of a seed, that of a mutation, and the new content."""
    name = rng.choice(sorted(seeds))
    mutations = dict(_MUTATIONS)
    if not zipfile.is_zipfile(io.BytesIO(seeds[name])):
        mutations = {key: value for key, value in mutations.items() if not key.startswith('zip')}
    kind = rng.choice(sorted(mutations))
    data = seeds[name]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = mutations[kind](data, rng, seeds) or data
    return name, kind, data


def _position(data, rng):
    # headers and directories are at the ends
    return rng.choice(
        (rng.randrange(len(data)), rng.randrange(min(len(data), 400)), -1 - rng.randrange(min(len(data), 4000)))
    )


def _flip(data, rng, seeds):
    new = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        new[_position(new, rng)] ^= 1 << rng.randrange(8)
    return bytes(new)


def _truncate(data, rng, seeds):
    return (
        data[: rng.randrange(1, max(2, len(data)))]
        if rng.random() < 0.8
        else data[rng.randrange(1, max(2, len(data))) :]
    )


def _cut_or_repeat(data, rng, seeds):
    start = _position(data, rng) % len(data)
    length = rng.choice((1, 2, 7, 64, 1000))
    part = data[start : start + length]
    return data[:start] + rng.choice((b'', part * 2, bytes(length), rng.randbytes(length))) + data[start + length :]


def _splice(data, rng, seeds):
    other = seeds[rng.choice(sorted(seeds))]
    return data[: rng.randrange(1, max(2, len(data)))] + other[rng.randrange(len(other)) :]


def _extreme(data, rng, seeds):
    start = _position(data, rng) % len(data)
    value = struct.pack('<q', rng.choice(EXTREMES))[: rng.choice((2, 4, 8))]
    return data[:start] + value + data[start + len(value) :]


def _rezip(data, rng, change):
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:
        return data  # an earlier round broke it
    records = change(records)
    new = io.BytesIO()
    with zipfile.ZipFile(new, 'w', rng.choice((zipfile.ZIP_STORED,) * 4 + (zipfile.ZIP_DEFLATED,))) as archive:
        for name, content in records:
            archive.writestr(name, content)
    return new.getvalue()


def _zip_records(data, rng, seeds):
    def change(records):
        records = list(records)
        index = rng.randrange(len(records))
        name, content = records[index]
        other = rng.choice(records)
        action = rng.randrange(9)
        if action == 0:
            del records[index]
        elif action == 1:
            records[index] = (rng.choice(('../../canary', '/canary', 'x', name.upper(), 'archive/data/0')), content)
        elif action == 2:
            records[index] = (name, other[1])
        elif action == 3:
            records[index] = (name, content[: rng.randrange(len(content) + 1)])
        elif action == 4:
            records[index] = (name, content + rng.randbytes(100))
        elif action == 5:
            rng.shuffle(records)
        elif action == 6:
            records[index] = (name, rng.randbytes(len(content)))
        elif action == 7:
            records.insert(0, (rng.choice(('other/data.pkl', 'data.pkl', '/', 'x')), content))
        else:
            records = records[: rng.randrange(1, max(2, len(records)))]
        return records

    return _rezip(data, rng, change)


def _zip_sizes(data, rng, seeds):
    """Other numbers in an entry of the central directory, or in the header before a record."""
    signature, fields = rng.choice(
        ((b'PK\x01\x02', (8, 10, 16, 20, 24, 28, 30, 42)), (b'PK\x03\x04', (6, 8, 18, 22, 26, 28)))
    )
    places = [i for i in range(len(data)) if data.startswith(signature, i)] if len(data) < 1 << 20 else []
    if not places:
        return data
    start = rng.choice(places) + rng.choice(fields)
    value = struct.pack('<q', rng.choice(EXTREMES))[: rng.choice((2, 4))]
    return data[:start] + value + data[start + len(value) :]


def _zip_pickle(data, rng, seeds):
    def change(records):
        return [(n, _edited_pickle(c, rng) if n.endswith('data.pkl') else c) for n, c in records]

    return _rezip(data, rng, change)


def _pickle(data, rng, seeds):
    """The content's pickle inside a legacy file: the fourth."""
    if not data.startswith(b'\x80\x02'):
        return _flip(data, rng, seeds)
    stream = io.BytesIO(data)
    try:
        for _ in range(3):
            list(pickletools.genops(stream))
        start = stream.tell()
        list(pickletools.genops(stream))
        end = stream.tell()
    except Exception:  # an earlier round broke it
        return data
    return data[:start] + _edited_pickle(data[start:end], rng) + data[end:]


def _edited_pickle(data, rng):
    try:
        operations = [(position, opcode, argument) for opcode, argument, position in pickletools.genops(data)]
    except Exception:  # an earlier round broke it
        return data
    starts = [position for position, *_ in operations] + [len(data)]
    for _ in range(rng.choice((1, 1, 2, 5))):
        action = rng.randrange(7)
        index = rng.randrange(len(operations) - 1)
        start, end = starts[index], starts[index + 1]
        if action == 0:  # an opcode less, or one twice
            return data[:start] + rng.choice((b'', data[start:end] * 2)) + data[end:]
        if action == 1:  # another opcode with the same argument
            return data[:start] + rng.choice(pickletools.opcodes).code.encode('latin1') + data[start + 1 :]
        numbers = [i for i, (_, opcode, a) in enumerate(operations) if opcode.name in ('BININT', 'BININT1', 'BININT2')]
        if action == 2 and numbers:
            index = rng.choice(numbers)
            value = rng.choice(EXTREMES)
            return data[: starts[index]] + pickle.dumps(value, 2)[2:-1] + data[starts[index + 1] :]
        names = [i for i, (_, opcode, _) in enumerate(operations) if opcode.name == 'GLOBAL']
        module, name = rng.choice(GLOBALS)
        asked = f'c{module}\n{name}\n'.encode()
        if action == 3 and names:
            index = rng.choice(names)
            return data[: starts[index]] + asked + data[starts[index + 1] :]
        if action == 4:  # a call that stays on the stack, and one that does not
            argument = rng.choice((b')', b'X\x06\x00\x00\x00canary\x85', b'}', b'(K\x01K\x02K\x03t', b'NNN\x87'))
            return data[:end] + asked + argument + b'R' + rng.choice((b'', b'0', b'}b0')) + data[end:]
        if action == 5:  # state for what is on the stack
            return (
                data[:end]
                + rng.choice((b'}b', b'}(X\x01\x00\x00\x00aK\x01ub', b'N}(X\x01\x00\x00\x00aK\x01u\x86b'))
                + data[end:]
            )
        if action == 6:  # sizes of strings, places in the memo
            value = struct.pack('<Q', rng.choice(EXTREMES) % 2**64)
            opcode = rng.choice((b'X', b'B', b'T', b'r', b'j', b'\x8e', b'\x8d', b'\x96', b'\x8b', b'\x95'))
            return data[:end] + opcode + (value if opcode > b'\x8b' else value[:4]) + data[end:]
    return data


_MUTATIONS = {
    'flip': _flip,
    'truncate': _truncate,
    'cut': _cut_or_repeat,
    'splice': _splice,
    'extreme': _extreme,
    'pickle': _pickle,
    'zip records': _zip_records,
    'zip sizes': _zip_sizes,
    'zip pickle': _zip_pickle,
}
