"""Hostile input of every kind is taken or refused with a reason, and nothing hangs.

Each target of `tests/fuzz/` runs with a small budget here; `python tests/fuzz/run.py` has large ones.
"""

from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from fuzzing import TARGETS, checker, load

CASES = 120


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_input_is_taken_or_refused_with_the_reason(name, tmp_path):
    counts = Counter()
    phases = (Phase.explicit, Phase.generate, Phase.shrink)
    slow = (
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
        HealthCheck.large_base_example,
    )
    budget = settings(max_examples=CASES, deadline=None, database=None, phases=phases, suppress_health_check=slow)
    budget(given(load(name).STRATEGY)(checker(name, tmp_path, counts)))()
    assert counts["taken"], "every case was refused: the strategy reaches nothing behind the first check"
    assert counts["refused"], "no case was refused: the strategy is not hostile"
