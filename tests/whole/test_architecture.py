"""The house: imports go one way down the list of rooms, in short chains; names, numbers and traps have one home each.

What is checked is read off the package's syntax trees; nothing is imported but the package itself.
"""

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

import pyro_laplace

PACKAGE = Path(pyro_laplace.__file__).parent
NAME = PACKAGE.name

LAYERS = [
    "_typing",
    "_errors",
    "settings",
    "unwrap",
    "_compat",
    "_memory",
    "_autodiff",
    "_progress",
    "recording",
    "state",
    "sparse",
    "data",
    "program",
    "likelihood",
    "curvature",
    "capture",
    "reading",
    "structure",
    "mode",
    "posterior",
    "evidence",
    "draws",
    "linearized",
    "sampled",
    "scores",
    "tuning",
    "calibration",
    "inference",
    "inner",
    "nested",
    "proposals",
    "diagnostics",
    "report",
    "plots",
    "nn",
    "io",
    "datasets",
]
"""The rooms and the files beside them, lowest first: each imports from those before it, and from itself."""

LONGEST_CHAIN = 18
"""Files, each of which imports the next, that one must have read to have read all that a file rests on."""

OF_ONE_ROOM = 4
"""Files of one room in such a chain."""

LINES = 400

DEFINED_TWICE = {
    "root": "a file for each curvature, whose one function the table of curvatures takes",
    "Prior": "nn.Prior is what users write of a network's parameter; the prior that is read off a run is not theirs",
}
"""Names that two files define, and why."""

FOREIGN = {
    "_process_message": "what a Pyro messenger implements",
    "_postprocess_message": "what a Pyro messenger implements",
    "_pyro_sample": "what a Pyro messenger implements",
    "_call": "what a torch transform implements",
    "_inverse": "what a torch transform implements",
    "_loc_scale": "what a Pyro autoguide implements",
    "_unpack_latent": "what a Pyro autoguide implements",
    "_create_plates": "what a Pyro autoguide is set up by",
}
"""Underscored names of Pyro's and torch's that a subclass is meant to define or to call."""


# --- reading the package ------------------------------------------------------------------------------


def name_of(path: Path) -> str:
    return ".".join([NAME, *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")


PATHS = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {module: ast.parse(path.read_text()) for module, path in PATHS.items()}


def short(module: str) -> str:
    return module.removeprefix(f"{NAME}.")


def is_face(module: str) -> bool:
    """Whether a module is a package's `__init__`, which defines nothing."""
    return PATHS[module].name == "__init__.py"


def room_of(module: str) -> str:
    return short(module).split(".")[0]


def definer(module: str, name: str) -> str:
    """The module that defines a name, through the faces of packages."""
    while module in PATHS and is_face(module):
        if f"{module}.{name}" in PATHS:
            return f"{module}.{name}"
        found = (
            (node.module, alias.name)
            for node in TREES[module].body
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
            if (alias.asname or alias.name) == name
        )
        source = next(found, None)
        if source is None or source[0] not in PATHS:
            return module
        module, name = source
    return module


def imports_of(module: str, anywhere: bool) -> set[str]:
    """The package's modules whose definitions a module imports: as it is loaded, or anywhere, functions included."""
    found = set()
    for node in ast.walk(TREES[module]) if anywhere else TREES[module].body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == NAME:
            found |= {definer(node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == NAME}
    return (found & PATHS.keys()) - {module}


@cache
def loads() -> dict[str, set[str]]:
    """Each module that defines something, to those that it imports as it is loaded."""
    return {
        module: {each for each in imports_of(module, False) if not is_face(each)}
        for module in PATHS
        if not is_face(module)
    }


def longest_chain() -> list[str]:
    graph = loads()

    @cache
    def from_here(module: str) -> tuple[str, ...]:
        return (module, *max((from_here(each) for each in sorted(graph[module])), key=len, default=()))

    return list(max((from_here(module) for module in graph), key=len))


def longest_within(room: str) -> list[str]:
    """Of all chains of imports, the one that goes through most files of a room, by these files."""
    graph = loads()

    @cache
    def from_here(module: str) -> tuple[str, ...]:
        below = max((from_here(each) for each in sorted(graph[module])), key=len, default=())
        return (module, *below) if room_of(module) == room else below

    return list(max((from_here(module) for module in graph), key=len))


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle; none if there is no circle."""
    done: set[str] = set()

    def search(module: str, on_the_way: list[str]) -> list[str]:
        if module in on_the_way:
            return [*on_the_way[on_the_way.index(module) :], module]
        if module in done:
            return []
        found = next((c for each in sorted(graph[module]) if (c := search(each, [*on_the_way, module]))), [])
        done.add(module)
        return found

    return next((found for module in graph if (found := search(module, []))), [])


def defined_in(module: str) -> Iterator[str]:
    """Functions and classes of a module."""
    for node in TREES[module].body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name


def numbers_of(module: str) -> Iterator[str]:
    """Module-level names of numbers and of formulas of numbers."""
    for node in TREES[module].body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        parts = list(ast.walk(node.value))
        constants = [part.value for part in parts if isinstance(part, ast.Constant)]
        arithmetic = all(
            isinstance(part, ast.Constant | ast.BinOp | ast.UnaryOp | ast.operator | ast.unaryop) for part in parts
        )
        if arithmetic and all(isinstance(value, int | float) and not isinstance(value, bool) for value in constants):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


@cache
def own_names() -> set[str]:
    """Every name that the package itself gives: functions, classes, attributes, fields, module names."""
    found = {part for module in PATHS for part in module.split(".")}
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and ast.unparse(node.value) == "self"
            ):
                found.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def private_names_of_others(module: str, own: set[str]) -> set[str]:
    """Underscored names that a module takes from elsewhere: attributes, imports, what getattr and setattr are told."""
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] != NAME:
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
            found |= {part for part in parts if is_private(part)}
        elif isinstance(node, ast.Import):
            found |= {part for alias in node.names for part in alias.name.split(".") if is_private(part)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            told = node.args[1]
            if isinstance(told, ast.Constant) and is_private(told.value) and not told.value.startswith(f"_{NAME}"):
                found.add(told.value)
    return found


# --- the rules ----------------------------------------------------------------------------------------


def test_imports_go_down_the_list_of_layers():
    rooms = {room_of(module) for module in PATHS if module != NAME}
    assert rooms == set(LAYERS), rooms ^ set(LAYERS)
    upward = [
        f"{short(module)} imports {short(imported)}"
        for module in PATHS
        if module != NAME
        for imported in sorted(imports_of(module, anywhere=True))
        if imported == NAME or LAYERS.index(room_of(imported)) > LAYERS.index(room_of(module))
    ]
    assert not upward, "\n".join(upward)


def test_there_is_no_cycle_of_imports():
    circle = cycle_in(loads())
    assert not circle, " > ".join(map(short, circle))


def test_no_module_imports_from_the_face_of_its_own_package():
    for module in PATHS:
        face = module.rpartition(".")[0]
        for node in ast.walk(TREES[module]):
            own = isinstance(node, ast.ImportFrom) and node.module == face and not is_face(module)
            assert not own or all(f"{face}.{alias.name}" in PATHS for alias in node.names), short(module)


def test_chains_of_imports_are_short():
    chain = longest_chain()
    assert all(after in loads()[before] for before, after in pairwise(chain))
    assert len(chain) <= LONGEST_CHAIN, f"{len(chain)} files: {' > '.join(map(short, chain))}"


@pytest.mark.parametrize("room", sorted({room_of(module) for module in PATHS if not is_face(module)}))
def test_chains_of_imports_within_a_room_are_short(room):
    chain = longest_within(room)
    assert len(chain) <= OF_ONE_ROOM, f"{len(chain)} files of {room}: {' > '.join(map(short, chain))}"


def test_a_name_has_one_home():
    homes = defaultdict(list)
    for module in PATHS:
        for name in {*defined_in(module), *numbers_of(module)}:
            homes[name].append(short(module))
    twice = {
        name: where
        for name, where in homes.items()
        if len(where) > 1 and not (name.startswith("__") and name.endswith("__"))
    }
    homeless = {name: where for name, where in twice.items() if name not in DEFINED_TWICE}
    assert not homeless, "\n".join(f"{name}: {', '.join(where)}" for name, where in sorted(homeless.items()))
    assert not DEFINED_TWICE.keys() - twice.keys(), "a reason for what is defined once"


def test_a_file_defines_a_name_once():
    for module in PATHS:
        overloads = {
            node.name
            for node in TREES[module].body
            if isinstance(node, ast.FunctionDef) and any(ast.unparse(d) == "overload" for d in node.decorator_list)
        }
        again = [name for name, count in Counter(defined_in(module)).items() if count > 1 and name not in overloads]
        assert not again, (short(module), again)


def test_numbers_live_in_settings():
    numbers = {module: set(numbers_of(module)) for module in PATHS if not module.startswith(f"{NAME}.settings")}
    homeless = {short(module): sorted(names) for module, names in numbers.items() if names}
    assert not homeless, "\n".join(f"{module}: {', '.join(names)}" for module, names in homeless.items())


@pytest.mark.parametrize("module", sorted(PATHS), ids=short)
def test_no_file_outgrows_a_reader(module):
    assert len(PATHS[module].read_text().splitlines()) <= LINES


@pytest.mark.parametrize("module", sorted(module for module in PATHS if is_face(module)), ids=short)
def test_every_room_says_what_it_is_for(module):
    """In two sentences at least: what is in it, and what is not, or who comes here."""
    said = ast.get_docstring(TREES[module]) or ""
    sentences = [each for each in said.replace("\n", " ").replace("`", "").split(". ") if each.strip()]
    assert len(sentences) >= 2 or module == NAME, said
    assert said.endswith("."), said


@pytest.mark.parametrize("module", sorted(PATHS), ids=short)
def test_private_names_of_pyro_and_torch_live_in_compat(module):
    found = private_names_of_others(module, own_names() | FOREIGN.keys())
    assert not found or room_of(module) == "_compat", f"{sorted(found)}: give it a name in pyro_laplace._compat"


@pytest.mark.parametrize("module", sorted(PATHS), ids=short)
def test_wrapped_distributions_are_peeled_in_one_place(module):
    if room_of(module) in {"unwrap", "likelihood"}:
        return
    peeling = [
        node.lineno
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.While) and "base_dist" in ast.unparse(node)
    ]
    assert not peeling, f"lines {peeling}: use pyro_laplace.unwrap"


# --- that these tests see what they are there to see --------------------------------------------------


def test_a_cycle_is_found():
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_a_number_is_told_from_other_values(monkeypatch):
    source = "A = 2**20\nB: int = -3\nC = (1, 2)\nD = 'x'\ntype E = int | float\nF = True\nG = float | int\nH = f(2)"
    monkeypatch.setitem(TREES, "probe", ast.parse(source))
    assert list(numbers_of("probe")) == ["A", "B"]


def test_a_private_name_is_told_from_our_own(monkeypatch):
    source = (
        "from torch.utils._pytree import tree_map\nimport torch._dynamo\nx._theirs\nself._ours\n__all__\n"
        "setattr(x, '_mark', 1)\ngetattr(x, '_pyro_laplace_mark')"
    )
    monkeypatch.setitem(TREES, "probe", ast.parse(source))
    assert private_names_of_others("probe", {"_ours"}) == {"_pytree", "_dynamo", "_theirs", "_mark"}
