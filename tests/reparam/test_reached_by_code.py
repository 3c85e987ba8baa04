"""What byte code says about the use of parts: on every Python, in doubt more."""

from __future__ import annotations

import pytest
from torch import nn

from repnext_mm.reparam.reached_by_code import calls_type, may_give, methods_with, reaches


class Whole(nn.Module):
    """Uses its children as a whole."""

    def forward(self, x):
        if self.down is not None:
            x = self.down(x)
        for block in self.blocks:
            x = block(x)
        return self.stem(x)

    def stem(self, x):
        return self.conv(x) if self.norm is None else self.norm(x)


class Subscripting(nn.Module):
    def forward(self, x):
        return self.down[0](x)


class Iterating(nn.Module):
    def forward(self, x):
        for index, block in enumerate(self.blocks):
            x = block[1](block[0](x)) + index
        return x


class Nested(nn.Module):
    def forward(self, x):
        return [layer(x) for block in self.blocks for layer in block]


class Named(nn.Module):
    def forward(self, x):
        return [block.conv(x) for block in self.blocks]


class Looked(nn.Module):
    def forward(self, x):
        return [getattr(block, 'conv')(x) for block in self.blocks]  # noqa: B009


@pytest.mark.parametrize(
    ('kind', 'path', 'expected'),
    [
        (Whole, 'down.0', False),
        (Whole, 'blocks.0.conv', False),
        (Whole, 'blocks.0.1', False),
        (Whole, 'conv', False),
        (Subscripting, 'down.0', True),
        (Subscripting, 'other.0', False),
        (Iterating, 'blocks.0.1', True),
        (Nested, 'blocks.0.1', True),
        (Named, 'blocks.0.conv', True),
        (Named, 'blocks.0.norm', False),
        (Looked, 'blocks.0.conv', True),
    ],
)
def test_reaches(kind, path, expected):
    assert reaches(kind, path.split('.')) == expected


def test_methods_with():
    assert [name for name, _ in methods_with(Whole, frozenset({'conv'}), helpers=True)] == ['stem']
    assert list(methods_with(Whole, frozenset({'conv'}), helpers=False)) == []
    assert list(methods_with(Whole, frozenset({'down'}), helpers=True)) == []


class ByKeyword(nn.Module):
    def forward(self, x):
        return self.part(x, raw=True)


class ByPlace(nn.Module):
    def forward(self, x):
        return self.part(x, True)


@pytest.mark.parametrize(('kind', 'expected'), [(Whole, set()), (ByKeyword, {'raw'}), (ByPlace, {'raw', 'mode'})])
def test_may_give(kind, expected):
    assert may_give(kind, ['raw', 'mode']) == expected


class AskingAtOnce(nn.Module):
    def forward(self, x):
        return type(self).__name__, self.helper(x)

    def helper(self, x):
        return x


class AskingLater(AskingAtOnce):
    def helper(self, x):
        return type(self.part)


@pytest.mark.parametrize(('kind', 'expected'), [(Whole, False), (AskingAtOnce, False), (AskingLater, True)])
def test_calls_type(kind, expected):
    assert calls_type(kind, 'forward') == expected
