"""The architecture: imports go one way down the list of layers, and no file outgrows a reader."""

import ast
from pathlib import Path

import pyro_laplace

PACKAGE = Path(pyro_laplace.__file__).parent

LAYERS = [
    {"_typing", "_errors", "_compat", "_memory", "_autodiff"},
    {"data"},
    {"program"},
    {"mode"},
    {"subset"},
    {"likelihood"},
    {"curvature"},
    {"precision"},
    {"evidence", "judge"},
    {"guide"},
    {"mixture_density"},
    {"mixture"},
    {"laplace", "update"},
    {"predictive"},
    {"inference", "datatree"},
    {"compare"},
    {"plots", "nn"},
]


def layer_of(module: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if module in names)


def imports_of(path: Path) -> set[str]:
    """The package's own modules that a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pyro_laplace"):
            found |= {node.module} if "." in node.module else {f"pyro_laplace.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("pyro_laplace")}
    return {name.split(".")[1] for name in found if "." in name}


def sources() -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def test_imports_go_down_the_list_of_layers():
    for path in sources():
        module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for imported in imports_of(path):
            allowed = layer_of(imported) < layer_of(module) or imported == module or layer_of(module) == 0
            assert allowed, f"{path.relative_to(PACKAGE)} imports {imported}, which is not below it"


def test_modules_of_one_package_have_no_import_cycle():
    for package in (path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()):
        edges = {}
        for path in package.glob("*.py"):
            tree = ast.parse(path.read_text())
            prefix = f"pyro_laplace.{package.name}."
            edges[path.stem] = {
                node.module.removeprefix(prefix)
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(prefix)
            }
            if path.stem != "__init__":
                from_own_package = [
                    node
                    for node in ast.walk(tree)
                    if isinstance(node, ast.ImportFrom) and node.module == f"pyro_laplace.{package.name}"
                ]
                assert not from_own_package, f"{path} imports its package's __init__"
        remaining = dict(edges)
        while remaining:
            leaves = [name for name, targets in remaining.items() if not (targets & remaining.keys()) - {name}]
            assert leaves, f"import cycle among {sorted(remaining)} of {package.name}"
            for name in leaves:
                del remaining[name]


def test_no_file_is_over_400_lines():
    for path in sources():
        assert len(path.read_text().splitlines()) <= 400, path


def test_private_names_of_pyro_live_in_one_file():
    for path in sources():
        if path.name == "_compat.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"_pyro_name", "_pyro_context", "_mask", "_pyro_set_supermodule"}, path
