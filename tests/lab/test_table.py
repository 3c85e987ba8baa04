"""Markdown tables: columns are aligned, text to the left and numbers to the right."""

from __future__ import annotations

import pytest

from repnext_mm.lab.table import markdown_table


def test_columns_are_aligned():
    table = markdown_table(['form', 'ms'], [['train form', '12.3'], ['fused', '1,234.5']])
    assert table.splitlines() == [
        '| form       |      ms |',
        '| ---------- | ------: |',
        '| train form |    12.3 |',
        '| fused      | 1,234.5 |',
    ]


def test_several_columns_of_text_and_no_rows():
    assert markdown_table(['', 'b', 'c'], [], texts=2).splitlines() == ['|     | b   |   c |', '| --- | --- | --: |']


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match='argument 2 is shorter'):
        markdown_table(['a', 'b'], [['1']])
