"""What a check found, gathered by rule, and the report that a person reads."""

from __future__ import annotations

from dataclasses import dataclass, field

SHOWN = 3  # places listed per rule


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
        lines = list(self.counts)
        for kind, found in (('error', self.errors), ('warning', self.warnings)):
            for rule, places in found.items():
                more = f' and {len(places) - SHOWN} more' if len(places) > SHOWN else ''
                lines.append(f'{kind}: {rule}: {", ".join(places[:SHOWN])}{more}')
        kinds = ((self.errors, 'error'), (self.warnings, 'warning'))
        totals = ((sum(map(len, found.values())), name) for found, name in kinds)
        lines.append('found ' + ' and '.join(f'{total} {name}{"" if total == 1 else "s"}' for total, name in totals))
        return '\n'.join(lines)
