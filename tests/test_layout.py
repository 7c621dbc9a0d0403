"""The import rules, held against the files: the dependency order, and one importing file per library."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOME = ROOT / "src" / "alexnet"
FILES = sorted(HOME.rglob("*.py"))
NAMES = [file.relative_to(HOME).as_posix() for file in FILES]

# The dependency order: a package imports from those before it. Packages in one set do not import each other.
PACKAGES = [
    "errors",
    "terminal",
    "system",
    "schema",
    "recipe",
    "kernels",
    {"data", "models"},
    "pages",
    "cuda_convnet",
    "loader",
    "evaluation",
    "bundle",
    {"weights", "doctor"},
    {"training", "export"},
    "explain",
    "plots",
    {"compression", "report"},
    "api",
    "experiments",
    "benchmark",
    "serve",
    "review",
    "cli",
]
ORDER = [package if isinstance(package, set) else {package} for package in PACKAGES]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}

# Where a foreign library may be used; nowhere, if the list is empty. A name ending in / is a whole room.
DOORS = {
    "PIL": ["data/decode.py", "loader/augmentation.py"],
    "pillow_heif": ["data/decode.py"],
    "simplejpeg": ["data/simplejpeg_decoder.py"],
    "matplotlib": ["plots/"],
    "jinja2": ["pages.py"],
    "tarfile": ["data/sources/archives.py", "export/web_folder.py"],
    "argparse": ["cli/", "__main__.py"],
    "tyro": ["cli/"],
    "os.environ": ["cli/", "__main__.py"],
    "os.getenv": ["cli/", "__main__.py"],
    "sys.argv": ["cli/", "__main__.py"],
    "torch.distributed": ["training/distributed/world.py", "training/distributed/world.py"],
    "torch.load": ["training/checkpoint.py", "weights/torchvision_weights.py"],  # both with weights_only=True
    "lazy_loader": ["__init__.py"],
    "filelock": ["kernels/compiler.py", "data/shards.py", "training/run_folder.py"],
    "platformdirs": ["system.py"],
    "importlib.metadata": ["__init__.py", "cli/machine.py"],  # the version of this package is alexnet.__version__
    "msgspec": ["schema.py", "evaluation/drift.py", "bundle/", "export/exported_model.py", "data/"],
    "pickle": [],
    "pickletools": ["weights/restricted_pickle.py"],  # takes a pickle apart and runs nothing of it
    "rich": ["cli/", "training/logger.py"],
    "torch.utils.tensorboard": ["training/logger.py"],
    "tensorboard": ["training/logger.py"],
    "pyarrow": ["data/sources/parquet.py", "export/batch_prediction.py"],
    "ray": ["data/shards.py", "export/batch_prediction.py"],
    "fsspec": ["data/remote.py"],
    "torchvision.datasets": ["data/sources/libraries.py", "benchmark/data.py"],
    "torchvision.models": ["models/torchvision_models.py", "weights/torchvision_weights.py", "benchmark/peers.py"],
    "cv2": ["experiments/fisher/features.py"],
    "skimage": [],  # its Fisher vectors are what tests compare ours with
    "sklearn.metrics": ["evaluation/one_vs_rest.py"],
    "sklearn.svm": ["experiments/fisher/train.py"],
    "sklearn.mixture": ["experiments/fisher/features.py"],
    "threadpoolctl": ["experiments/fisher/train.py"],
    "safetensors": ["bundle/integrity.py", "bundle/compressed_weights.py", "explain/neighbors.py"],
    "captum": ["explain/saliency.py"],
    "umap": ["explain/embedding.py"],
    "scipy": [
        "data/sources/annotations.py",
        "doctor/duplicates.py",
        "evaluation/",
        "experiments/runner.py",
        "training/last_layer.py",
    ],
    "onnx": ["export/export.py", "export/export_module.py", "export/web_folder.py", "benchmark/steps.py"],
    "onnxscript": ["export/export_module.py"],
    "onnxruntime": ["export/exported_model.py", "export/export.py", "export/web_folder.py", "benchmark/steps.py"],
    "openvino": ["export/exported_model.py", "export/export.py", "benchmark/steps.py", "benchmark/steps.py"],
    "triton": ["kernels/lrn_triton.py"],
    "nncf": ["benchmark/steps.py"],
    "huggingface_hub": ["export/hub.py"],
    "datasets": ["data/sources/libraries.py"],  # there, also a name of torchvision
    "optuna": ["experiments/sweep.py"],
    "timm": ["export/timm_folder.py", "models/timm_models.py"],
    "transformers": ["export/transformers_processor.py"],
    "fastapi": ["serve/"],
    "uvicorn": ["serve/", "review/server.py"],
    "multipart": [],
    "starlette": ["serve/", "review/server.py"],
    "pydantic": ["serve/"],
    "h11": ["serve/"],
    "httpx": ["export/client.py"],
    "prometheus_client": ["serve/"],
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
    chains = [dotted_name(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {*imported(tree, name), *chains}


def dotted_name(node):
    """``os.environ`` of such an expression; empty for every other."""
    if isinstance(node, ast.Attribute):
        base = dotted_name(node.value)
        return f"{base}.{node.attr}" if base else ""
    return node.id if isinstance(node, ast.Name) else ""


@cache
def parse(name):
    return ast.parse((HOME / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_imports_only_from_upstream(name):
    tree, room = parse(name), Path(name).parts[0].removesuffix(".py")
    if name == "__init__.py":  # the public names are imported when they are first used: the stub lists them
        public = imported(ast.parse((HOME / "__init__.pyi").read_text(encoding="utf-8")), name)
        assert {dotted.split(".")[1] for dotted in public} == {"errors", "recipe", "models", "export", "api"}
    rank = {"__main__": len(ORDER), "__init__": -1}.get(room, RANK.get(room))
    assert rank is not None, f"{name}: give {room!r} a place in PACKAGES"
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


def module_of(name):
    """``data/store.py`` -> ``alexnet.data.store``; a package's ``__init__.py`` is the package."""
    return ".".join(["alexnet", *Path(name).with_suffix("").parts]).removesuffix(".__init__")


def imported_at_run_time(tree, name):
    """Full dotted names of the imports outside of ``if TYPE_CHECKING:``."""
    checks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and dotted_name(node.test) == "TYPE_CHECKING"]
    skipped = [node for check in checks for node in check.body]
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) and node not in skipped]
    return [dotted for node in nodes for dotted in imports(node, name)]


def import_graph(trees):
    """Module -> modules that it imports anywhere in its code, in functions too; ``trees``: file name -> syntax tree."""
    modules = {module_of(name) for name in trees}
    graph = {}
    for name, tree in trees.items():
        names = imported_at_run_time(tree, name)
        targets = {dotted if dotted in modules else dotted.rpartition(".")[0] for dotted in names}
        graph[module_of(name)] = (targets & modules) - {module_of(name)}
    return graph


def cycle(graph):
    """The first cycle of a graph as a list of its nodes; empty if there is none."""
    finished = set()

    def visit(node, path):
        if node in path:
            return [*path[path.index(node) :], node]
        if node not in finished:
            for target in sorted(graph[node]):
                if found := visit(target, [*path, node]):
                    return found
            finished.add(node)
        return []

    return next(filter(None, (visit(node, []) for node in sorted(graph))), [])


def test_no_modules_import_each_other_in_a_cycle():
    graph = import_graph({name: parse(name) for name in NAMES})
    assert sum(map(len, graph.values())) > 500
    assert not (path := cycle(graph)), " imports ".join(path)


def test_no_packages_import_each_other_in_a_cycle():
    """Folders directly below ``alexnet``; its own ``__init__`` and ``__main__`` are no packages."""
    packages = {}
    for module, targets in import_graph({name: parse(name) for name in NAMES}).items():
        package, *others = (name.split(".")[1] if "." in name else "" for name in (module, *sorted(targets)))
        packages.setdefault(package, set()).update({*others} - {package, ""})
    packages.pop("")
    assert not (path := cycle(packages)), " imports ".join(path)


def test_a_cycle_is_seen():
    def cycle_with(text):
        texts = {"a/b.py": "from alexnet.a import c", "a/c.py": "def f():\n    from alexnet.d import g", "d.py": text}
        return cycle(import_graph({name: ast.parse(source) for name, source in texts.items()}))

    assert cycle_with("") == []
    assert cycle_with("from alexnet.a.b import x") == ["alexnet.a.b", "alexnet.a.c", "alexnet.d", "alexnet.a.b"]
    assert cycle_with("if TYPE_CHECKING:\n    from alexnet.a.b import x") == []


def test_the_rules_see_what_they_forbid():
    """A gate that never closes is no gate."""
    tree = ast.parse("import os\nfrom ..cli import main\nfrom torch import load, distributed as d\nos.environ['A']")
    assert used(tree, "data/decode.py") >= {"os.environ", "alexnet.cli.main", "torch.load", "torch.distributed"}
    assert RANK["data"] == RANK["models"] < RANK["loader"] < RANK["evaluation"] < RANK["bundle"] < RANK["api"]
