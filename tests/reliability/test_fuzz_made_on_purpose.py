"""Weight files that random mutations do not find: attacks, exotic tensors, and each defect that was fixed."""

from __future__ import annotations

import io
import os
import struct
import time
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from repnext_mm import RepNeXt
from repnext_mm.apis.weight_files import convert_file, fuse_file, inspect_file
from repnext_mm.checkpoints import read_checkpoint, state_dict_of, unsafe_globals
from repnext_mm.reparam import fuse
from tests.checkpoints import files
from tests.checkpoints.pickles import archived, call, plain, program, storage, tensor, tensor_arguments
from tests.conftest import randomize
from tests.reliability.fuzz_mutations import TINY


def pickled(*operations, key=b'X\x01\x00\x00\x00w'):
    """A dict with one entry, whose value the operations leave on the stack."""
    return program(b'}' + key + b''.join(operations) + b's')


def nested(levels):
    """A tuple of two tuples of two tuples ...: small in the file, and for ever to walk."""
    return b')' + b''.join(b'q\x000h\x00h\x00\x86' for _ in range(levels))


def at(offset):
    return call('torch._utils._rebuild_tensor_v2', storage(2), plain(offset), *tensor_arguments(2, (1,), (1,))[2:])


HOSTILE = {
    'a tensor beyond its record': tensor(1000, (1000,), (1,)),
    'a tensor beyond its storage': tensor(2, (3,), (1,)),
    'strides beyond its storage': tensor(2, (2,), (100,)),
    'a tensor of one number, claimed a billion times': tensor(2, (10**9,), (0,)),
    'a tensor with a negative offset': at(-1),
    'sizes whose product overflows': tensor(2, (2**62, 4), (1, 1)),
    'a storage of a negative size': tensor(-5, (1,), (1,)),
    'a byte array of any size': b'\x96' + struct.pack('<Q', 2**40),
    'bytes of any size': b'\x8e' + struct.pack('<Q', 2**40),
    'a list of numbers as a function': b']\x85R',
    'attributes of a class': b'cargparse\nNamespace\nN}(X\x08\x00\x00\x00__init__cnumpy\ndtype\nu\x86b',
    'a class as a function': b'cargparse\nNamespace\n)R',
    'an array of objects': b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85X\x01\x00\x00\x00btR'
    b'(K\x01K\x01\x85cnumpy\ndtype\nX\x02\x00\x00\x00O8\x89\x88\x87R\x89]tb',
    'an array larger than its bytes': b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n'
    b'K\x00\x85X\x01\x00\x00\x00btR'
    b'(K\x01J\x00\x00\x00\x7f\x85cnumpy\ndtype\nX\x02\x00\x00\x00f8\x89\x88\x87R\x89B\x08\x00\x00\x0012345678tb',
    'an array made with a size': b'cnumpy\nndarray\nJ\x00\x00\x00\x7f\x85X\x01\x00\x00\x00O\x86R',
    'an unknown encoding': b'c_codecs\nencode\nX\x01\x00\x00\x00aX\x07\x00\x00\x00unknown\x86R',
    'an attribute that runs code': b'c__builtin__\ngetattr\nctorch\nSize\nX\x08\x00\x00\x00__init__\x86R',
    'a class of torch': b'ctorch.nn.modules.linear\nLinear\n)\x81',
}


@pytest.mark.parametrize('name', HOSTILE)
def test_files_made_on_purpose(name, tmp_path):
    path = archived(tmp_path / 'bad.pth', pickled(HOSTILE[name]), {'0': bytes(8)})
    start = time.perf_counter()
    with pytest.raises(ValueError, match='was not read: it|is not a weight file or is corrupt') as caught:
        read_checkpoint(path)
    assert str(caught.value).isprintable()
    assert 'allocat' not in str(caught.value)
    assert time.perf_counter() - start < 2


def test_a_place_far_up_in_the_memo_takes_no_room(tmp_path):
    """The unpickler in C makes room for all the places before it: 64 GB."""
    path = archived(tmp_path / 'odd.pth', pickled(b'Nr\xff\xff\xff\xff'))
    assert read_checkpoint(path) == {'w': None}


def test_keys_that_hash_for_ever(tmp_path):
    with pytest.raises(ValueError, match='it holds a deeply nested tuple as a key'):
        read_checkpoint(archived(tmp_path / 'bad.pth', pickled(b'N', key=nested(60))))


def test_a_small_file_stays_small(tmp_path):
    text = b'X' + struct.pack('<I', 1 << 20) + b'a' * (1 << 20) + b'q\x01'
    calls = b'c_codecs\nencode\nh\x01X\x06\x00\x00\x00latin1\x86R' * 2000  # a megabyte each
    with pytest.raises(ValueError, match='unpacks to far more than its size'):
        read_checkpoint(archived(tmp_path / 'bad.pth', b'\x80\x02](' + text + calls + b'e.'))


@pytest.mark.parametrize('how', ['overlapping', 'named outside', 'one name twice', 'unpacks to far more'])
@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_archives_that_are_none_of_ours(how, tmp_path):
    torch.save({'w': torch.zeros(1 << (25 if 'far' in how else 10))}, tmp_path / 'good.pth')
    with zipfile.ZipFile(tmp_path / 'good.pth') as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    path = tmp_path / 'bad.pth'
    method = zipfile.ZIP_DEFLATED if 'far' in how else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, 'w', method) as archive:
        for name, content in records.items():
            archive.writestr(f'../../{name}' if how == 'named outside' else name, content)
        if how == 'one name twice':
            archive.writestr('good/data/0', bytes(4))
        if how == 'overlapping':
            data = archive.getinfo('good/data/0')
            data.file_size = data.compress_size = 1 << 30
    with pytest.raises(ValueError, match='is not a weight file or is corrupt|was not read: it is an archive'):
        read_checkpoint(path)
    assert not list(tmp_path.parent.glob('good*'))


def test_a_flipped_bit_of_a_weight_is_found(tmp_path):
    """torch checks no checksums: such a weight would be used."""
    torch.save({'w': torch.zeros(1000)}, tmp_path / 'w.pth')
    data = bytearray((tmp_path / 'w.pth').read_bytes())
    data[data.find(bytes(2000)) + 1000] ^= 64
    (tmp_path / 'w.pth').write_bytes(data)
    with pytest.raises(ValueError, match='is corrupt .*CRC'):
        read_checkpoint(tmp_path / 'w.pth')


class Hostile(nn.Module):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.weight

    @torch.jit.export
    def __getstate__(self):
        return self.path, self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, torch.Tensor, bool]) -> None:
        self.path, self.weight, self.training = state
        torch.save(self.weight, self.path)


class Holder(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def test_code_in_torchscript_is_not_run(tmp_path):
    trace = tmp_path / 'trace'
    torch.jit.script(Holder(Hostile(str(trace)))).save(str(tmp_path / 'bad.pt'))
    trace.unlink(missing_ok=True)
    with pytest.raises(ValueError, match='is not a weight file or is corrupt|no tensors'):
        state_dict_of(read_checkpoint(tmp_path / 'bad.pt'))
    with pytest.raises(ValueError, match='is not a weight file or is corrupt|no tensors'):
        inspect_file(tmp_path / 'bad.pt')
    assert not trace.exists()
    torch.jit.load(str(tmp_path / 'bad.pt'))
    assert trace.exists()  # so it is that torch's own reader runs it


def test_torchscript_is_read_as_torch_reads_it(tmp_path):
    kept, _ = fuse(randomize(RepNeXt(TINY)).eval(), form='keep_norms')
    with torch.no_grad():
        network = torch.jit.trace(files.FusedClassifier(kept, nn.Linear(64, 3)), torch.randn(1, 3, 64, 64))
    network.save(str(tmp_path / 'a.pt'))
    torch.jit.script(nn.Sequential(nn.Linear(2, 3, dtype=torch.float64), nn.BatchNorm1d(3).half())).save(
        str(tmp_path / 'b.pt')
    )
    for name in ('a.pt', 'b.pt'):
        ours, theirs = read_checkpoint(tmp_path / name)['state_dict'], torch.jit.load(str(tmp_path / name)).state_dict()
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert torch.equal(ours[key], value)
            assert ours[key].dtype == value.dtype


def test_tensors_of_every_kind_are_read_as_torch_reads_them(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8)
    kinds += (torch.uint8, torch.bool, torch.complex64)
    state = {str(kind): base.to(kind) for kind in kinds}
    state |= {
        'transposed': base.t(),
        'part': base[1:, 2:4],
        'channels last': torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        'scalar': torch.tensor(3),
        'empty': torch.zeros(0, 3),
        'parameter': nn.Parameter(base.clone()),
    }
    state |= {'tied': base, 'size': torch.Size((1, 2))}
    for zipped in (False, True):
        if zipped and hasattr(torch, 'uint16'):  # torch 2.3 and newer save new kinds of numbers, as bytes
            state['float8'] = base.to(torch.float8_e4m3fn)
        path = tmp_path / f'{zipped}.pth'
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        ours, theirs = read_checkpoint(path), torch.load(path, weights_only=True)
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert type(ours[key]) is type(value)
            if key != 'size':
                assert (ours[key].dtype, ours[key].shape, ours[key].stride()) == (
                    value.dtype,
                    value.shape,
                    value.stride(),
                )
                assert torch.equal(ours[key].to(torch.complex128), value.to(torch.complex128))
        assert ours['tied'].data_ptr() == ours['transposed'].data_ptr()


def test_keys_that_are_no_names(tmp_path):
    torch.save({0: torch.ones(1), 'weight': torch.zeros(1)}, tmp_path / 'a.pth')
    assert list(state_dict_of(read_checkpoint(tmp_path / 'a.pth'))) == ['weight']
    for key in ('\x1b[2J', 'a\nb', 'x' * 5000):
        torch.save({'state_dict': {key: torch.ones(1)}}, tmp_path / 'b.pth')
        with pytest.raises(ValueError, match='is not a name of a weight') as caught:
            inspect_file(tmp_path / 'b.pth')
        assert str(caught.value).isprintable()
    torch.save({'\x1b[2J': 1, 'w': torch.ones(1)}, tmp_path / 'c.pth')
    assert inspect_file(tmp_path / 'c.pth').entries == ('\\x1b[2J', 'w')


def test_a_scalar_where_a_convolution_is_expected(tmp_path):
    torch.save({'stages.0.blocks.0.channel_mixer.2.weight': torch.tensor(1.0)}, tmp_path / 'a.pth')
    assert inspect_file(tmp_path / 'a.pth').weights.arch is None


def test_globals_of_a_legacy_file_are_listed(tmp_path):
    content = {'w': torch.ones(1), 'args': os.system}
    torch.save(content, tmp_path / 'a.pth', _use_new_zipfile_serialization=False)
    assert unsafe_globals(tmp_path / 'a.pth') == [f'{os.system.__module__}.system']


def test_metadata_is_written_plainly_or_not_at_all(tmp_path):
    classes = {'classes': ('a', 'b'), 'palette': np.eye(2, 3), 'count': torch.tensor(3), 'odd': torch.float32}
    torch.save({'state_dict': {'w': torch.ones(1)}, 'meta': {'dataset_meta': classes}}, tmp_path / 'a.pth')
    written = torch.load(convert_file(tmp_path / 'a.pth', tmp_path / 'b.pth'), weights_only=True)['meta'][
        'dataset_meta'
    ]
    assert written == {'classes': ['a', 'b'], 'palette': [[1, 0, 0], [0, 1, 0]], 'count': 3, 'odd': 'dtype'}
    for levels, sentence in ((17, 'is not written: get the original file'), (40, 'unpacks to far more than its size')):
        wide: list[object] = []
        for _ in range(levels):
            wide = [wide, wide]
        content = {'state_dict': {'w': torch.ones(1)}, 'meta': {'dataset_meta': {'classes': wide}}}
        torch.save(content, tmp_path / 'c.pth')
        with pytest.raises(ValueError, match=sentence):
            convert_file(tmp_path / 'c.pth', tmp_path / 'd.pth')
        assert not (tmp_path / 'd.pth').exists()


def test_weights_that_are_not_finite_are_not_fused(tmp_path):
    model = randomize(RepNeXt(TINY))
    model.stages[2].blocks[0].norm.running_mean[0] = float('nan')
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'a.pth')
    (tmp_path / 'net.py').write_text(f"model = dict(type='RepNeXt', arch={TINY})\n")
    with pytest.raises(ValueError, match=r'was not fused: outputs would differ by .*nan'):
        fuse_file(tmp_path / 'a.pth', tmp_path / 'net.py', tmp_path / 'fused.pth')
    assert not (tmp_path / 'fused.pth').exists()


def test_names_of_no_file(tmp_path):
    for name in ('~nobody-of-this-name/a.pth', str(tmp_path), 'a\0b'):
        with pytest.raises(FileNotFoundError, match='no weight file at'):
            read_checkpoint(name)


def test_a_broken_archive_is_one_sentence_for_inspect_too(tmp_path):
    buffer = io.BytesIO()
    torch.save({'w': torch.ones(1)}, buffer)
    data = bytearray(buffer.getvalue())
    data[data.rfind(b'PK\x01\x02') + 1] = 0
    (tmp_path / 'a.pth').write_bytes(data)
    with pytest.raises(ValueError, match='is not a weight file or is corrupt'):
        inspect_file(tmp_path / 'a.pth')
