"""Measurements that return values and print nothing."""

from repnext_mm.benchmark.latency import Latency, measure_latency

__all__ = ['Latency', 'measure_latency']
