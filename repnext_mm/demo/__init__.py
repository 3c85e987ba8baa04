"""The demo: make data, train, test in both forms, compare, and draw."""

from repnext_mm.demo.run import DemoReport, run_demo
from repnext_mm.demo.table import format_table

__all__ = ['DemoReport', 'format_table', 'run_demo']
