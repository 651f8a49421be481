"""The deliberate faults of `faults.py` are still faults of the present code; `make mutations` tries them."""

from __future__ import annotations

import pytest
from faults import FAULTS
from mutations import ROOT, occurrences


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.sentence)
def test_each_fault_has_its_place(fault):
    assert occurrences(fault) == 1
    assert fault.old != fault.new
    assert all((ROOT / "tests" / test).is_file() for test in fault.tests)


def test_sentences_tell_faults_apart():
    assert len({fault.sentence for fault in FAULTS}) == len(FAULTS)
