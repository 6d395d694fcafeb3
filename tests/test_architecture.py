"""The rules of the house that a machine can check: who imports whom, and what no file may hold.

Each rule is a function from a parsed source file to problems, so that planted violations can be
tried on it as well as the tree.
"""

import ast
from pathlib import Path

import pytest

from twotower.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]

# What a folder may import of this package besides itself: folders or single modules.
STAGES = (
    "data",
    "features",
    "models",
    "losses",
    "metrics",
    "index",
    "training",
    "export",
    "serving",
    "monitoring",
)
ALLOWED = {
    "data": (),
    "features": ("data",),
    "models": ("data", "features"),
    "losses": ("data.schema",),
    "metrics": ("data.schema", "data.item_lists"),
    "index": ("data.schema", "data.item_lists", "metrics"),
    "training": ("data", "features", "models", "losses", "metrics", "index"),
    "export": ("data", "features", "models", "losses", "metrics", "index"),
    "serving": ("data", "features", "metrics", "index", "export"),
    "monitoring": ("data", "features", "metrics", "index", "export", "serving"),
    "planning": STAGES,
    "cli": (*STAGES, "planning", "config", "config_files"),
    "config": (),
    "config_files": ("config", "features"),
}

# Where a heavy package may be imported at all.
HOMES = {
    "pytorch_lightning": ("training",),
    "lightning": ("training",),
    "tensorboard": ("training", "monitoring"),
    "faiss": ("index",),
    "hydra": ("config", "cli"),
    "omegaconf": ("config", "config_files", "cli"),
    "onnx": ("export",),
    "onnxscript": ("export",),
    "onnxruntime": ("serving", "export"),
    "PIL": ("training", "serving"),
    "fastapi": ("serving",),
    "starlette": ("serving",),
    "uvicorn": ("serving",),
    "pydantic": ("serving",),
    "pydantic_core": ("serving",),
    "prometheus_client": ("serving",),
    "matplotlib": ("training", "monitoring", "cli"),
    "datasketches": ("monitoring",),
    "optuna": ("training", "cli"),
    "torchrec": ("training",),
    "fbgemm_gpu": ("training",),
    "ray": ("data",),
    "lmdb": ("serving",),
    "redis": ("serving",),
    "river": ("monitoring",),
    "triton": ("losses", "models", "training"),
    "sqlalchemy": (),
    "torchmetrics": (),
    "pandas": (),
    "polars": (),
    "sklearn": (),
    "pickle": (),
    "dill": (),
    "cloudpickle": (),
    "joblib": (),
    "marshal": (),
    "shelve": (),
}

# Folders whose files load without torch, and the files among them that are about tensors.
WITHOUT_TORCH = (
    *("data", "features", "metrics", "serving", "monitoring", "planning", "config"),
    "config_files",
)
# What `--help` loads; these import the stages inside their function.
COMMAND_FILES = tuple(f"cli/{name}.py" for name in ("main", "run", *COMMANDS))
TENSOR_FILES = (
    "data/batches.py",
    "data/packed_columns.py",
    "data/shuffled_batches.py",
    "data/user_sets.py",
    "data/windows.py",
)

CODE_FROM_TEXT = (
    "eval",
    "exec",
    "compile",
    "builtins.eval",
    "builtins.exec",
    "subprocess.getoutput",
)
# Where a name decides what is imported: held to prefixes, or to the names of our commands.
IMPORTERS = ("config_targets.py", "cli/main.py", "cli/loading.py")
ERRORS_OF_YAML = ("config_compose.py", "config_files.py")

FORBIDDEN_NAMES = ("utils", "util", "common", "helpers", "helper", "core", "misc")
TAKES_KEYWORDS = ("config.py:build",)
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60


def folder_of(path):
    """First folder of a path inside the package; the files that check configs count as one."""
    first = path.split("/")[0].removesuffix(".py")
    return "config" if first.startswith("config") and first not in ALLOWED else first


def imports(tree, *, running=False):
    """Names of imported modules with their lines; with `running`, of those that loading needs."""
    nodes = list(loading(tree)) if running else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module == "pickle" and [alias.name for alias in node.names] == ["UnpicklingError"]:
                continue  # What torch raises where a checkpoint holds more than tensors.
            yield module, node.lineno
            if module == "twotower" or module.count(".") == 1:
                yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def loading(node):
    """Nodes that run when a file is loaded: not in functions, not for the type checker alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from loading(child)


def within(module, allowed):
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


def check_layers(path, tree):
    folder = folder_of(path)
    if folder not in ALLOWED:
        yield f"{path}: `{folder}` is not in the table of folders"
        return
    allowed = (folder, *ALLOWED[folder])
    for name, line in imports(tree):
        parts = name.split(".")
        if parts[0] != "twotower" or len(parts) == 1:
            continue
        target = ".".join([folder_of(parts[1]), *parts[2:]])
        deeper = any(entry.startswith(f"{target}.") for entry in allowed)
        if not within(target, allowed) and not deeper:
            yield f"{path}:{line}: `{folder}` imports `{name}`"


def check_homes(path, tree):
    folder = folder_of(path)
    for name, line in imports(tree):
        package = name.split(".")[0]
        if package in HOMES and folder not in HOMES[package]:
            yield f"{path}:{line}: `{package}` outside {', '.join(HOMES[package]) or 'its home'}"


def check_loading(path, tree):
    command = path in COMMAND_FILES
    if path in TENSOR_FILES or not (command or folder_of(path) in WITHOUT_TORCH):
        return
    light = ("cli.main", "cli.run", "cli.failures", "config", "config_compose", "planning")
    for name, line in imports(tree, running=True):
        if name.split(".")[0] == "torch":
            yield f"{path}:{line}: `torch` is imported when the file is loaded"
        own, _, rest = name.partition(".")
        if command and own == "twotower" and "." in rest and not within(rest, light):
            yield f"{path}:{line}: `{name}` is imported before the command runs"


def check_names(path, tree):
    for part in path.removesuffix(".py").split("/"):
        if part in FORBIDDEN_NAMES:
            yield f"{path}: the name `{part}` says nothing"
    if path.endswith("__init__.py") and tree.body:
        yield f"{path}: is not empty"


def check_functions(path, tree):
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.args.kwarg is not None and f"{path}:{node.name}" not in TAKES_KEYWORDS:
            yield f"{path}:{node.lineno}: `{node.name}` takes **{node.args.kwarg.arg}"
        first = node.body[0]
        documented = ast.get_docstring(node) is not None
        start = first.end_lineno if documented else first.lineno - 1
        if node.end_lineno - start > MAX_FUNCTION_LINES:
            yield f"{path}:{node.lineno}: `{node.name}` has more than {MAX_FUNCTION_LINES} lines"


def check_loads(path, tree):
    """Files are data: loading one must not run code that it holds."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called == "torch.load" and given.get("weights_only") != "True":
            yield f"{path}:{node.lineno}: `torch.load` without weights_only=True"
        if given.get("weights_only") == "False" or given.get("allow_pickle") == "True":
            yield f"{path}:{node.lineno}: `{called}` unpickles"


def check_code(path, tree):
    """Nothing turns a text into code or into a command of a shell."""
    if path not in ERRORS_OF_YAML:
        for name, line in imports(tree):
            if name == "yaml":
                yield f"{path}:{line}: `yaml` is read by OmegaConf, which builds no objects"
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        called, first = ast.unparse(node.func), next(iter(node.args), None)
        text = isinstance(first, ast.JoinedStr | ast.Constant)
        shell = any(word.arg == "shell" for word in node.keywords)
        imported = called.rpartition(".")[2] in ("import_module", "__import__")
        if called in CODE_FROM_TEXT or called.startswith(("os.system", "os.popen", "os.exec")):
            yield f"{path}:{node.lineno}: `{called}` runs what a text says"
        elif imported and path not in IMPORTERS and not isinstance(first, ast.Constant):
            yield f"{path}:{node.lineno}: `{called}` imports what a variable names"
        elif called.endswith(".extractall"):
            yield f"{path}:{node.lineno}: `{called}` writes where an archive says"
        elif called.startswith("subprocess.") and (shell or text):
            yield f"{path}:{node.lineno}: `{called}` is given a line for a shell, not a list"


RULES = (
    check_layers,
    check_homes,
    check_loading,
    check_names,
    check_functions,
    check_loads,
    check_code,
)


def problems_of(path, source):
    """All problems of one file; `path` is relative to the package."""
    tree = ast.parse(source)
    problems = [problem for rule in RULES for problem in rule(path, tree)]
    num_lines = len(source.splitlines())
    if num_lines > MAX_FILE_LINES:
        problems.append(f"{path}: {num_lines} lines, more than {MAX_FILE_LINES}")
    return problems


def sources():
    package = ROOT / "src" / "twotower"
    return {str(p.relative_to(package)): p.read_text() for p in sorted(package.rglob("*.py"))}


def test_the_tree_keeps_the_rules():
    files = {path: text for path, text in sources().items() if path != "__init__.py"}
    assert len(files) > 20
    problems = [problem for path, text in files.items() for problem in problems_of(path, text)]
    assert not problems, "\n".join(problems)


def test_every_folder_is_a_package_with_an_empty_init():
    package = ROOT / "src" / "twotower"
    folders = {path.parent for path in package.rglob("*.py")}
    assert [f for f in sorted(folders) if not (f / "__init__.py").is_file()] == []
    assert (package / "__init__.py").read_text() == ""


@pytest.mark.parametrize("name", ["train", "export"])
def test_scripts_at_the_top_only_start_their_command(name):
    path = ROOT / f"{name}.py"
    if not path.is_file():
        pytest.skip(f"{name}.py is not written yet")
    imported = {module for module, _ in imports(ast.parse(path.read_text()))}
    assert imported <= {"sys", "__future__", f"twotower.cli.{name}", f"twotower.cli.{name}.main"}


def function_of(num_lines):
    """A function of that many lines under a docstring of a hundred."""
    return 'def f():\n    """Doc.' + "\n" * 100 + '    """\n' + "    x = 1\n" * num_lines


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("data/x.py", "from twotower.features.spec import Feature", "`data` imports"),
        ("features/x.py", "import twotower.models.dcn", "`features` imports"),
        ("losses/x.py", "from twotower.data.prepared import Prepared", "`losses` imports"),
        ("metrics/x.py", "from twotower.losses import masks", "`metrics` imports"),
        ("index/x.py", "from twotower.data import prepared", "`index` imports"),
        ("export/x.py", "from twotower.training.retrieval import Task", "`export` imports"),
        ("serving/x.py", "def f():\n    from twotower import models", "`serving` imports"),
        ("models/x.py", "from twotower import config", "`models` imports"),
        ("training/x.py", "from twotower.cli.run import run_command", "`training` imports"),
        ("config_check.py", "from twotower.data.schema import LABEL", "`config` imports"),
        ("extra/x.py", "", "`extra` is not in the table"),
        ("models/x.py", "import pytorch_lightning as pl", "`pytorch_lightning` outside training"),
        ("serving/x.py", "def f():\n    import faiss", "`faiss` outside index"),
        ("training/x.py", "from omegaconf import DictConfig", "`omegaconf` outside config, "),
        ("cli/x.py", "import onnxruntime.tools", "`onnxruntime` outside serving, export"),
        ("data/x.py", "import pandas", "`pandas` outside its home"),
        ("export/x.py", "import pickle", "`pickle` outside its home"),
        ("export/x.py", "from pickle import UnpicklingError, loads", "`pickle` outside its home"),
        ("metrics/x.py", "import torch", "`torch` is imported when the file is loaded"),
        ("serving/x.py", "try:\n    from torch import nn\nexcept ImportError: ...", "`torch`"),
        ("cli/export.py", "from twotower.export.bundle import Bundle", "before the command runs"),
        ("cli/train.py", "from twotower.cli.data import prepare", "before the command runs"),
        ("cli/run.py", "import torch", "`torch` is imported when the file is loaded"),
        ("data/utils.py", "", "the name `utils`"),
        ("core/x.py", "", "the name `core`"),
        ("data/__init__.py", "X = 1", "is not empty"),
        ("data/x.py", "class A:\n    def f(self, **options): ...", "`f` takes **options"),
        ("config.py", "def compose(**options): ...", "`compose` takes **options"),
        ("data/x.py", function_of(61), "`f` has more than 60 lines"),
        ("data/x.py", "def f():\n" + "    x = 1\n" * 61, "`f` has more than 60 lines"),
        ("export/x.py", "import torch\ntorch.load('f')", "without weights_only=True"),
        ("export/x.py", "import torch\ntorch.load('f', weights_only=False)", "without"),
        ("index/x.py", "load('f', weights_only=False)", "`load` unpickles"),
        ("data/x.py", "np.load('f', allow_pickle=True)", "`np.load` unpickles"),
        ("data/x.py", "eval('1')", "`eval` runs what a text says"),
        ("cli/x.py", "import os\nos.system('ls')", "`os.system` runs"),
        ("cli/x.py", "import importlib\nimportlib.import_module(name)", "what a variable names"),
        ("cli/x.py", "import subprocess\nsubprocess.run(c, shell=True)", "a line for a shell"),
        ("cli/x.py", "import subprocess\nsubprocess.run('ls')", "a line for a shell"),
        ("data/x.py", "archive.extractall(folder)", "writes where an archive says"),
        ("data/x.py", "import yaml\nyaml.load(text)", "`yaml` is read by OmegaConf"),
        ("data/x.py", "def f():\n    from yaml import unsafe_load", "`yaml` is read by OmegaConf"),
        ("data/x.py", "x = 1\n" * 301, "301 lines, more than 300"),
    ],
)
def test_planted_violation_is_found(path, source, expected):
    assert any(expected in problem for problem in problems_of(path, source))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("data/x.py", "from twotower.data.schema import LABEL\nimport pyarrow"),
        ("losses/x.py", "from twotower.data.schema import LABEL\nimport torch"),
        ("losses/x.py", "from twotower.data import schema"),
        ("index/faiss_index.py", "import faiss\nfrom twotower.metrics.top_k import Relevant"),
        ("training/x.py", "import pytorch_lightning as pl\nfrom twotower.losses import masks"),
        ("serving/x.py", "from twotower.export.bundle import Bundle"),
        ("metrics/x.py", "def f():\n    import torch"),
        ("metrics/x.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("data/batches.py", "import torch"),
        ("cli/x.py", "from twotower.config import build\nfrom twotower.cli.run import run_command"),
        ("cli/export.py", "def f(cfg):\n    from twotower.export.bundle import Bundle"),
        ("cli/part.py", "import torch\nfrom twotower.export.bundle import Bundle"),
        ("cli/doctor.py", "from twotower.planning.doctor import examine\nimport rich"),
        ("config_files.py", "from twotower.features.spec import FeatureSpec\nimport omegaconf"),
        ("config.py", "from twotower.config_check import unknown\nimport hydra"),
        ("config.py", "def build(node, **runtime): ..."),
        ("data/x.py", function_of(60)),
        ("data/x.py", "x = 1\n" * 300),
        ("export/x.py", "import torch\ntorch.load('f', weights_only=True)"),
        ("cli/x.py", "import subprocess\nsubprocess.run(['ls', path])"),
        ("cli/x.py", "import importlib\nimportlib.import_module('torch')"),
        ("models/x.py", "model.eval()\nre.compile('x')\ntorch.compile(model)"),
        ("training/x.py", "from pickle import UnpicklingError"),
        ("data/__init__.py", ""),
    ],
)
def test_what_is_allowed_is_not_reported(path, source):
    assert problems_of(path, source) == []
