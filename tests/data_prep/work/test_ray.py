"""The same bytes from a Ray cluster, even when a node is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data_prep.folders import files, lines, tokenize

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    store = 80 << 20
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": store})
    cluster.add_node(num_cpus=1, object_store_memory=store)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_a_cluster_that_loses_a_node_half_way_writes_the_bytes_of_one_process(
    tmp_path: Path, tokenizer: Path, documents: list[str], cluster: Any
) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(documents * 100))
    options = (
        "--input",
        tmp_path / "a.jsonl",
        "--name",
        "t",
        "--unit-size",
        "500K",
        "--shard-tokens",
        "100K",
    )
    assert tokenize(tokenizer, tmp_path / "one", *options) == 0
    codes: list[int] = []
    work = threading.Thread(
        target=lambda: codes.append(tokenize(tokenizer, tmp_path / "ray", *options, "--executor", "ray"))
    )
    work.start()
    deadline = time.monotonic() + 300
    while len(list((tmp_path / "ray").rglob("unit.json"))) < 2:
        assert time.monotonic() < deadline and work.is_alive()
        time.sleep(0.02)
    lost = next(node for node in cluster.worker_nodes)
    cluster.remove_node(lost, allow_graceful=False)
    unfinished = not codes
    work.join(timeout=300)
    assert unfinished and codes == [0]
    assert files(tmp_path / "one") == files(tmp_path / "ray")
