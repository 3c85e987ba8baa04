"""Measurements that return values and print nothing."""

from repnext_mm.benchmark.environment import environment
from repnext_mm.benchmark.latency import Latency, measure_latency

__all__ = ['Latency', 'environment', 'measure_latency']
