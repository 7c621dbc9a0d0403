"""Preparing on a Ray cluster of two nodes: the bytes that this process alone would write."""

import sys
import warnings

import pytest

from alexnet.data.prepare import prepare
from alexnet.data.sources import open_source
from alexnet.errors import DataError, ImageError

from .conftest import FEW, contents, killed_at


@pytest.fixture(scope="module")
def nodes():
    """A cluster of two nodes with a core each, on this machine."""
    ray = pytest.importorskip("ray", reason="pip install 'alexnet[cluster]'")
    from ray.cluster_utils import Cluster

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        yield ray
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of ray's own, in its threads
def test_two_nodes_write_what_one_process_writes(nodes, folder, tmp_path):
    assert len([node for node in nodes.nodes() if node["Alive"]]) == 2
    root = folder({"a": 10, "b": 6})
    (root / "a/bad.jpg").write_bytes(b"")
    whole = prepare(open_source(root), tmp_path / "whole", **FEW)
    killed_at(root, tmp_path / "many", 9)  # what this machine finished before stays finished
    first = tmp_path / "many.partial" / "train" / "images-00000.npy"
    before, seen = first.stat().st_mtime_ns, []
    store = prepare(open_source(root), tmp_path / "many", **FEW, engine="ray", progress=lambda d, t: seen.append(d))
    assert contents(store.path) == contents(whole.path) and seen[-1] == 17
    assert (store.path / "train" / "images-00000.npy").stat().st_mtime_ns == before
    with pytest.raises(ImageError, match="is empty"):
        prepare(open_source(root), tmp_path / "strict", **FEW, engine="ray", bad="fail")


def test_without_ray_the_line_says_what_to_install(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match=r"engine ray needs ray; must be installed; pip install 'alexnet\[cl"):
        prepare(open_source(folder({"a": 5, "b": 5})), tmp_path / "s", **FEW, engine="ray")
    with pytest.raises(DataError, match="engine 'dask'; must be threads or ray"):
        prepare(open_source(tmp_path / "images"), tmp_path / "s", **FEW, engine="dask")
