"""The tree in ARCHITECTURE.md is the real one, and the rules that no import linter can see hold."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "cache_store", "consumers", "jobs")
MOST_LINES = 400
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc"}


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def documented_modules() -> list[str]:
    """The `.py` files of the tree: a line `    name.py   what it is` under its folder's line `folder/`."""
    tree = re.search(r"```tree\n(.*?)```", (ROOT / "ARCHITECTURE.md").read_text(), re.DOTALL)[1]
    found, folders = [], []
    for line in tree.splitlines():
        if not line.strip():
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name.rstrip("/"))
        elif name.endswith(".py"):
            found.append("/".join([*folders, name]))
    return found


def test_the_documented_tree_is_the_real_one():
    real = [path.relative_to(ROOT).as_posix() for path in modules() if path.name != "__init__.py"]
    assert sorted(documented_modules()) == real


def test_every_module_opens_with_one_sentence_and_stays_small():
    for path in modules():
        text = path.read_text()
        if path.name != "__init__.py" or text.strip():
            assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
        assert text.count("\n") <= MOST_LINES, f"{path} has more than {MOST_LINES} lines"
        assert path.stem not in VAGUE, path


def test_package_inits_only_import_and_list():
    for path in modules():
        if path.name == "__init__.py":
            for node in ast.parse(path.read_text()).body:
                is_all = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
                is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
                assert is_all or is_docstring or isinstance(node, ast.Import | ast.ImportFrom), path


def test_ray_is_imported_in_lanes_and_jobs_alone():
    """Late imports inside functions too, which the import linter counts, and names in strings, which it does not."""
    for path in modules():
        place = path.relative_to(ROOT).as_posix()
        if not place.startswith(("pipeline/lanes/", "jobs/")):
            assert not re.search(r"^\s*(import|from) ray\b", path.read_text(), re.MULTILINE), place


def test_nothing_trusts_remote_code():
    for path in modules():
        assert "trust_remote_code=True" not in path.read_text().replace(" ", ""), path


def test_every_dependency_of_the_project_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for group in project["optional-dependencies"].values() for r in group)]
    names = {re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower() for requirement in wanted} - {"vlm-cache"}
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if line}
    assert names <= pinned, names - pinned
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()
