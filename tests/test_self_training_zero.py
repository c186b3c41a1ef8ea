"""RAFT and ReST, which DeepSpeed would leave no policy to sample from, must say so under DeepSpeed itself."""

import pytest
from sharded_case import in_two

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow  # for an environment of its own: `.ci/run deepspeed`


@pytest.mark.parametrize("engine", ["ZeRO-2", "ZeRO-3"])
@pytest.mark.parametrize("method", ["RAFT", "ReST"])
def test_deepspeed_is_refused(tmp_path, method, engine):
    in_two(tmp_path / "two", "refused_by_zero", case="sharded_raft_case", engine=engine, method=method)
