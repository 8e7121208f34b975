"""Fixtures shared by all tests. Nothing here skips, retries or filters: a missing reference (PyTorch) is an error."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import pytest

from convkern import _core


@pytest.fixture(params=_core.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set this machine can run, best first; the one in use before comes back afterwards."""
    before = _core.isa()
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(before)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that depend on the test's name alone: the same when the test is run by itself."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def threads() -> Iterator[int]:
    """The number of threads in use, restored afterwards if the test changes it."""
    before = _core.num_threads()
    yield before
    _core.set_num_threads(before)
