"""The import rules, held against the files: the dependency order, and one importing file per library."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOME = ROOT / "src" / "alexnet"
FILES = sorted(HOME.rglob("*.py"))
NAMES = [file.relative_to(HOME).as_posix() for file in FILES]

# The river. A room sees those of earlier lines and those before it in its own; rooms in one set never meet.
RIVER = [
    ["errors", "terminal", "schema", "temporary", "recipe", "native"], [{"data", "models"}],
    ["batches", "card", "compression", "bundle", "weights"], ["evaluation"],
    [{"training", "visualize", "deploy"}], ["api"], ["history"], ["bench"], ["cli"],
]  # fmt: skip
ORDER = [place if isinstance(place, set) else {place} for line in RIVER for place in line]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}

# Where a foreign library may be used; nowhere, if the list is empty. A name ending in / is a whole room.
DOORS = {
    "PIL": ["data/pixels.py"],
    "simplejpeg": ["data/turbo.py"],
    "matplotlib": ["visualize/"],
    "jinja2": ["data/doctor/page.py", "visualize/report.py"],
    "tarfile": ["data/archives.py"],
    "argparse": ["cli/", "__main__.py"],
    "tyro": ["cli/"],
    "os.environ": ["cli/", "__main__.py"],
    "os.getenv": ["cli/", "__main__.py"],
    "sys.argv": ["cli/", "__main__.py"],
    "torch.distributed": ["training/distributed.py", "training/launching.py"],
    "torch.load": ["training/checkpoint.py", "weights/published.py"],  # both with weights_only=True
    "filelock": ["native.py", "data/job.py", "training/run.py"],
    "msgspec": ["schema.py", "bundle/", "deploy/seal.py", "data/"],
    "pickle": [],
    "pickletools": ["weights/pickles.py"],  # takes a pickle apart and runs nothing of it
    "rich": ["cli/", "training/journal.py"],
    "torch.utils.tensorboard": ["training/journal.py"],
    "tensorboard": ["training/journal.py"],
    "pyarrow": ["data/parquet.py"],
    "ray": ["data/cluster.py"],
    "fsspec": ["data/remote.py"],
    "torchvision.datasets": ["data/standard.py", "bench/pictures.py"],
    "torchvision.models": ["models/peers.py", "weights/published.py", "bench/peers.py"],
    "cv2": ["history/fisher/descriptors.py"],
    "skimage": [],  # its Fisher vectors are what tests compare ours with
    "sklearn.svm": ["history/fisher/margin.py"],
    "sklearn.mixture": ["history/fisher/mixture.py"],
    "threadpoolctl": ["history/fisher/learning.py"],
    "safetensors": ["bundle/tensors.py", "compression/file.py", "evaluation/neighbors.py"],
    "captum": ["evaluation/saliency.py"],
    "umap": ["evaluation/embedding.py"],
    "scipy": ["data/annotations.py", "data/doctor/twins.py", "evaluation/", "history/verdict.py"],
    "onnx": ["deploy/export.py", "deploy/export_int8.py", "bench/steps.py"],
    "onnxscript": ["deploy/export.py"],
    "onnxruntime": ["deploy/runtime.py", "deploy/export_int8.py", "bench/steps.py"],
    "openvino": ["deploy/runtime.py", "deploy/export.py", "bench/steps.py", "bench/whole_numbers.py"],
    "triton": ["models/triton_norm.py"],
    "nncf": ["bench/whole_numbers.py"],
    "huggingface_hub": ["deploy/hub.py"],
    "fastapi": ["deploy/server/"],
    "uvicorn": ["deploy/server/"],
    "multipart": [],
    "starlette": ["deploy/server/"],
    "pydantic": ["deploy/server/"],
    "h11": ["deploy/server/"],
    "prometheus_client": ["deploy/server/"],
}


def imports(node, name):
    """Full dotted names that one import statement brings in."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        above = ["alexnet", *Path(name).parts[:-1]]
        base = ".".join([*above[: len(above) - node.level + 1], *filter(None, [base])])
    return [f"{base}.{alias.name}" for alias in node.names]


def imported(tree, name):
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return [dotted for node in found for dotted in imports(node, name)]


def used(tree, name):
    """All dotted names of a file: its imports, and chains like ``os.environ``."""
    chains = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {*imported(tree, name), *chains}


def parse(name):
    return ast.parse((HOME / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_imports_only_from_upstream(name):
    tree, room = parse(name), Path(name).parts[0].removesuffix(".py")
    if name == "__init__.py":  # what it offers is imported when used: in __getattr__, or for type checkers alone
        late = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.If)]
        tree.body = [node for node in tree.body if node not in late]
        offered = {dotted.split(".")[1] for node in late for dotted in imported(node, name) if "alexnet." in dotted}
        assert offered <= {"errors", "recipe", "models", "deploy", "api"}
    rank = {"__main__": len(ORDER), "__init__": -1}.get(room, RANK.get(room))
    assert rank is not None, f"{name}: give {room!r} a place in RIVER"
    for dotted in imported(tree, name):
        package, _, rest = dotted.partition(".")
        other = rest.split(".")[0]
        if package == "alexnet" and other != room and other != "__version__":
            assert RANK.get(other, len(ORDER)) < rank, f"{name} imports {dotted}, which is not upstream"


@pytest.mark.parametrize("name", NAMES)
def test_one_library_one_door(name):
    for dotted in used(parse(name), name):
        for library, doors in DOORS.items():
            if f"{dotted}.".startswith(f"{library}."):
                allowed = any(name == door or (door.endswith("/") and name.startswith(door)) for door in doors)
                assert allowed, f"{name} uses {dotted}; must be only in {doors or 'no file'}"


@pytest.mark.parametrize("name", NAMES)
def test_a_file_name_says_what_it_holds(name):
    assert Path(name).name not in {"utils.py", "common.py", "helpers.py"}


def test_the_rules_see_what_they_forbid():
    """A gate that never closes is no gate."""
    tree = ast.parse("import os\nfrom ..cli import main\nfrom torch import load, distributed as d\nos.environ['A']")
    assert used(tree, "data/pixels.py") >= {"os.environ", "alexnet.cli.main", "torch.load", "torch.distributed"}
    assert RANK["data"] == RANK["models"] < RANK["batches"] < RANK["bundle"] < RANK["evaluation"] < RANK["api"]
