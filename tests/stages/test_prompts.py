"""How many prompts each iteration has."""

import pytest
from ml_collections import ConfigDict

from selfreward_jax.stages.prompts import wanted


@pytest.mark.parametrize(("growth", "counts"), [(1.0, [5000, 5000, 5000]), (1.75, [5000, 8750, 15312])])
def test_each_iteration_has_so_many_times_the_prompts_of_the_one_before(growth, counts):
    section = ConfigDict({"count": 5000, "growth": growth})
    assert [wanted(section, t) for t in (2, 3, 4)] == counts
