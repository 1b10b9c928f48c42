# SPDX-License-Identifier: Apache-2.0
"""The benchmark runs; what it measures is for people."""

import asyncio
import shutil
import sys

import pytest

from tests.kubernetes.servers import ASSETS, find_programs


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
async def test_the_benchmark_prints_a_row_a_case_without_an_error() -> None:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench", "1", "1"), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await child.communicate()
    table = output.decode().partition("req/s")[2].splitlines()[1:9]

    assert child.returncode == 0
    assert [row[:22].strip() for row in table] == [
        "no filter",
        "bare, headers",
        "ours, headers",
        "bare, 2 KB body",
        "ours, 2 KB body",
        "50 of 5,000 match",
        "a hint of 5,000",
        "20 changes a second",
    ]
    assert [row.split()[-1] for row in table] == ["0"] * 8


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
@pytest.mark.skipif(find_programs() is None, reason=f"{ASSETS} does not name a folder with etcd and kube-apiserver")
async def test_the_benchmark_of_a_cluster_prints_its_rows_without_an_error() -> None:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.cluster", "1", "1", "100"), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await child.communicate()
    first, _, rest = output.decode().partition("req/s")
    table = rest.splitlines()[1:3]

    assert child.returncode == 0
    assert first.startswith("100 pods: ready after ")
    assert [(row[:24].strip(), row.split()[-1]) for row in table] == [("quiet", "0"), ("20 changes a second", "0")]
    assert "not ready until left out of the snapshot" in rest
