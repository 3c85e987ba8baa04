"""What torch.save writes, against torch.load of the torch that is installed: equal, or named for what it is."""

from __future__ import annotations

import argparse
import collections
import pathlib
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from repnext_mm.checkpoints import WeightsError, read_checkpoint

BASE = torch.arange(24.0).reshape(4, 6)
COMPLEX = torch.tensor([1 + 2j, 3 - 1j])
DTYPES = [
    'float64',
    'float32',
    'float16',
    'bfloat16',
    'int64',
    'int32',
    'int16',
    'int8',
    'uint8',
    'bool',
    'complex64',
    'complex128',
    'complex32',
    'uint16',
    'uint32',
    'uint64',
    'float8_e4m3fn',
    'float8_e5m2',
    'float8_e4m3fnuz',
    'float8_e5m2fnuz',
    'float8_e8m0fnu',
    'float4_e2m1fn_x2',
    'bcomplex32',
]


def tagged(made):
    made.tag = 'hi'
    return made


def of_dtype(name):
    return torch.arange(16, dtype=torch.uint8).repeat(3).view(getattr(torch, name)) if name != 'bool' else BASE > 3


def trained():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    return {
        'model': model.state_dict(),
        'optimizer': optimizer.state_dict(),
        'schedule': schedule.state_dict(),
        'args': argparse.Namespace(lr=0.1, x=None, t=(1, 2)),
    }


KINDS = {
    **{f'dtype {name}': (lambda name=name: of_dtype(name)) for name in DTYPES if hasattr(torch, name)},
    'views of one storage': lambda: [BASE, BASE[1:3], BASE[:, ::2], BASE.t(), BASE[2, 3], BASE.flatten()[5:]],
    'no elements, no dimensions': lambda: [torch.empty(0), torch.empty(3, 0, 2), torch.tensor(3.0), BASE[4:]],
    'channels last, permuted': lambda: [
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(2, 3, 4).permute(2, 0, 1),
    ],
    'expanded': lambda: [torch.tensor([1.0]).expand(3), BASE[0, :1].expand(30), torch.ones(3, 1).expand(3, 5)],
    'unfolded': lambda: torch.arange(10.0).unfold(0, 5, 1),
    'diagonal, as_strided': lambda: [torch.eye(4).diagonal(), torch.arange(9.0).as_strided((2, 2), (3, 1), 2)],
    'conjugate view': lambda: [COMPLEX.conj(), COMPLEX.conj()[:1]],
    'negative view': lambda: COMPLEX.conj().imag,
    'parameters': lambda: [nn.Parameter(BASE.clone()), nn.Parameter(torch.arange(3), requires_grad=False)],
    'parameter with an attribute': lambda: tagged(nn.Parameter(BASE.clone())),
    'tensor with an attribute': lambda: tagged(BASE.clone()),
    'requires grad': lambda: BASE.clone().requires_grad_(),
    'meta': lambda: torch.empty(3, 4, device='meta'),
    'sparse': lambda: BASE.to_sparse(),
    'sparse rows': lambda: BASE.to_sparse_csr(),
    'quantized': lambda: torch.quantize_per_tensor(BASE, 0.1, 0, torch.qint8),
    'quantized by channel': lambda: torch.quantize_per_channel(
        BASE, torch.full((4,), 0.1), torch.zeros(4), 0, torch.quint8
    ),
    'nested': lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    'typed storage': lambda: torch.arange(6.0).storage(),
    'untyped storage': lambda: torch.arange(6.0).untyped_storage(),
    'numbers of Python': lambda: [2**200, -5, 1e300, float('nan'), True, None, 1j, complex('nan'), 2**31, -(2**63)],
    'text': lambda: ['', 'ü\U0001f600', 'x' * 300],
    'bytes': lambda: [b'', b'\x00\xff' * 300, bytearray(), bytearray(b'ab'), bytearray(b'\xff' * 70000)],
    'numbers of numpy': lambda: [
        np.float64(3),
        np.int64(2),
        np.bool_(True),
        np.float32(1.5),
        np.str_('hi'),
        np.bytes_(b'x'),
        np.complex64(1j),
    ],
    'arrays': lambda: [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array(['a', 'bc']),
        np.array([True]),
        np.zeros(0),
        np.zeros((2, 0)),
        np.array(3.0),
        np.zeros(3, 'S0'),
        np.arange(4)[::2],
    ],
    'big-endian arrays': lambda: [np.arange(3, dtype='>f4'), np.arange(30, dtype='>i8'), np.arange(3.0)],
    'array of objects': lambda: np.array([None, 1], dtype=object),
    'array of dates': lambda: np.array(['2024-01-01'], 'M8[D]'),
    'array of records': lambda: np.zeros(2, dtype=[('a', 'f4'), ('b', 'i2')]),
    'type of numpy': lambda: np.dtype('f4'),
    'random states': lambda: [torch.get_rng_state(), random.getstate(), np.random.get_state()],  # noqa: NPY002
    'containers': lambda: [
        collections.OrderedDict(b=collections.OrderedDict(c=1)),
        collections.Counter('aab'),
        {1, 2},
        set(),
        (),
        [],
        {},
        (1, (2, [3, {'four': (5,)}])),
    ],
    'shared': lambda: (lambda part: [part, part, (part,)])([1, BASE]),
    'keys': lambda: {1: 2, (1, 'a'): 3, None: 4, 2.5: 1, ('a', ('b', 1)): 3, b'x': 1, torch.float32: 2},
    'things of torch': lambda: [torch.Size([1, 2]), torch.device('cuda', 1), torch.device('cpu'), torch.float16],
    'training': trained,
    'optimizer of a cycle': lambda: torch.optim.lr_scheduler.OneCycleLR(
        torch.optim.SGD([nn.Parameter(BASE.clone())], 0.1, momentum=0.9), 0.1, 100
    ).state_dict(),
    'path': lambda: pathlib.PurePosixPath('/x'),
    'class of a test': lambda: Plain(),
    'module': lambda: nn.Linear(2, 2),
    'itself': lambda: (lambda part: (part.append(part), part)[1])([]),
}
if hasattr(nn, 'Buffer'):
    KINDS['buffer'] = lambda: nn.Buffer(BASE.clone())
# what torch reads and this reader only names: networks here have none
NAMED = {
    'sparse': 'a sparse tensor',
    'sparse rows': 'a sparse tensor',
    'quantized': 'a quantized tensor',
    'quantized by channel': 'a quantized tensor',
    'nested': 'a nested tensor',
    'itself': 'holds itself',
}


class Plain:
    """An object of a class of one's own."""


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.filterwarnings('ignore')  # of storages, sparse and quantized tensors, and protocols
def test_it_is_read_as_torch_reads_it_or_named(kind, zipped, protocol, tmp_path):
    path = tmp_path / 'a.pth'
    try:
        torch.save(
            {'w': BASE, 'it': KINDS[kind]()}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped
        )
    except (TypeError, KeyError, RuntimeError) as error:
        pytest.skip(f'torch does not save it: {error}')
    theirs, safe = loaded(path)
    try:
        ours, refusal = read_checkpoint(path), ''
    except WeightsError as error:
        ours, refusal = None, str(error)
    if ours is None:
        assert 'was not read: it' in refusal
        assert kind in NAMED or not safe, refusal
        assert NAMED.get(kind, '') in refusal
    else:
        assert kind not in NAMED
        assert torch.equal(ours['w'], BASE)
        if theirs is not None:  # torch cannot read all that it writes
            assert_same(ours, theirs)


def loaded(path):
    """torch's own content of a file, and whether its safe reader takes it."""
    try:
        return torch.load(path, map_location='cpu', weights_only=True), True
    except Exception:
        try:
            return torch.load(path, map_location='cpu', weights_only=False), False
        except Exception:
            return None, False


def assert_same(ours, theirs):
    assert type(ours) is type(theirs)
    if isinstance(theirs, Tensor):
        assert (ours.dtype, ours.shape, ours.device) == (theirs.dtype, theirs.shape, theirs.device)
        assert ours.stride() == theirs.stride() or theirs.is_conj() or theirs.is_neg()
        if isinstance(theirs, nn.Parameter):
            assert ours.requires_grad == theirs.requires_grad
        assert vars(ours) == vars(theirs)
        if not theirs.is_meta:
            assert numbers(ours) == numbers(theirs)
    elif isinstance(theirs, dict):
        for (our_key, our_value), (key, item) in zip(ours.items(), theirs.items(), strict=True):
            assert_same(our_key, key)
            assert_same(our_value, item)
        assert getattr(ours, '_metadata', None) == getattr(theirs, '_metadata', None)
    elif isinstance(theirs, list | tuple):
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.tolist() == theirs.tolist()
    elif isinstance(theirs, torch.TypedStorage):
        assert ours.dtype == theirs.dtype
        assert ours.tolist() == theirs.tolist()
    else:
        assert repr(ours) == repr(theirs)


def numbers(tensor):
    plain = tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return bytes(plain.untyped_storage())


def test_the_grid_holds_every_type_that_torch_saves():
    names = {str(value).removeprefix('torch.') for value in getattr(torch.storage, '_new_dtypes', set)()}
    assert {name for name in names if not name.startswith(('bits', 'int', 'uint', 'quint'))} <= set(DTYPES)


@pytest.mark.parametrize('option', ['compute_crc32', 'skip_data'])
def test_options_of_saving(option, tmp_path):
    serialization = torch.serialization
    if option == 'skip_data' and hasattr(serialization, 'skip_data'):
        with serialization.skip_data():
            torch.save({'w': BASE}, tmp_path / 'a.pth')
        with pytest.raises(WeightsError, match=r'its numbers were not saved \(torch.serialization.skip_data\)'):
            read_checkpoint(tmp_path / 'a.pth')
    elif option == 'compute_crc32' and hasattr(serialization, 'set_crc32_options'):
        serialization.set_crc32_options(False)
        try:
            torch.save({'w': BASE}, tmp_path / 'a.pth')
        finally:
            serialization.set_crc32_options(True)
        assert torch.equal(read_checkpoint(tmp_path / 'a.pth')['w'], BASE)
    else:
        pytest.skip('this torch has no such option')
