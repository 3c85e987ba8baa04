"""Measuring and proving: latency against peers, complexity, profiles, exactness of every law and family."""
