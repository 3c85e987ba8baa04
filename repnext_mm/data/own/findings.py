"""What a check found, gathered by rule, and the report that a person reads."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

SHOWN = 3  # examples in a sentence; the rest is a count
_LONGEST = 200  # characters of one example
_LONGEST_VALUE = 60


def listed(examples: Collection[Any]) -> str:
    """The first examples and how many more there are: every list in a sentence for people goes through here."""
    first = ', '.join(shortened(str(example)) for example in islice(examples, SHOWN))
    return f'{first} and {len(examples) - SHOWN} more' if len(examples) > SHOWN else first


def quoted(names: Iterable[Any]) -> str:
    """Names or paths in quotes, as :func:`listed`."""
    return listed([f"'{name}'" for name in names])


def value_text(value: Any) -> str:
    """A value as JSON writes it, cut to what one reads."""
    return shortened(json.dumps(value, ensure_ascii=False, default=str), _LONGEST_VALUE)


def shortened(text: str, longest: int = _LONGEST) -> str:
    """One printable line: control characters and undecodable file names escaped, the middle of a long text cut out."""
    if not text.isprintable():
        text = ''.join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text[: 10 * longest])
    half = (longest - 5) // 2
    return text if len(text) <= longest else f'{text[:half]} ... {text[-half:]}'


@dataclass
class Findings:
    """Counts per split, and the broken rules with the places that break them; errors stop, warnings do not."""

    counts: list[str] = field(default_factory=list)
    errors: dict[str, list[str]] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)

    def error(self, rule: str, place: str) -> None:
        """Data that training would stumble over or learn wrongly from."""
        self.errors.setdefault(rule, []).append(place)

    def warn(self, rule: str, place: str) -> None:
        """Data that is left out, or that is likely not meant so."""
        self.warnings.setdefault(rule, []).append(place)

    def report(self) -> str:
        """All of it: one line per split and per rule, with the first places."""
        lines = [shortened(line, 3 * _LONGEST) for line in self.counts]
        for kind, found in (('error', self.errors), ('warning', self.warnings)):
            lines += [f'{kind}: {shortened(rule, 3 * _LONGEST)}: {listed(places)}' for rule, places in found.items()]
        kinds = ((self.errors, 'error'), (self.warnings, 'warning'))
        totals = ((sum(map(len, found.values())), name) for found, name in kinds)
        lines.append('found ' + ' and '.join(f'{total} {name}{"" if total == 1 else "s"}' for total, name in totals))
        return '\n'.join(lines)
