"""What a person reads: three examples and a count, in one printable line."""

from __future__ import annotations

from repnext_mm.data.own.findings import Findings, listed, quoted, value_text


def test_a_list_is_three_examples_and_a_count():
    assert listed([]) == ''
    assert listed('abc') == 'a, b, c'
    assert quoted(range(500)) == "'0', '1', '2' and 497 more"


def test_a_report_is_short_whatever_is_in_it():
    findings = Findings(counts=['x' * 10_000])
    for number in range(2000):
        findings.error('rule', f'{number}' + 'y' * 10_000)
    findings.warn('w' * 10_000, 'place')
    lines = findings.report().splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) < 1300
    assert lines[1].endswith(' and 1997 more')
    assert lines[-1] == 'found 2000 errors and 1 warning'


def test_an_example_is_one_printable_line():
    shown = quoted(['two\nlines\x1b[2J', b'\xff.png'.decode('utf-8', 'surrogateescape')])
    assert shown == "'two\\nlines\\x1b[2J', '\\udcff.png'"
    shown.encode()


def test_values_are_shown_as_json():
    assert value_text(None) == 'null'
    assert value_text('64') == '"64"'
    assert value_text([1, {'a': True}]) == '[1, {"a": true}]'
    assert len(value_text(list(range(10_000)))) <= 60
