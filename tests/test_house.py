"""The house rules that code alone can hold: who may import whom, and that everything imports."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GROUND = {"ranks", "settings", "tables"}
MAY_IMPORT = {
    "adworld": set(),
    "training": set(),
    "catalog": set(),
    "metrics": set(),
    "report": set(),
    "quantizer": {"training"},
    "inspection": {"quantizer"},
    "data": {"adworld"},
    "embedding": {"data", "training"},
    "baselines": {"data", "catalog", "metrics", "training"},
    "prompts": {"data", "catalog"},
    "lm": {"catalog", "prompts", "quantizer"},  # rows of tokens may start from codebooks
    "decoding": {"catalog", "lm"},
    # artifacts: a generation that was killed knows its parts again
    "generation": {"artifacts", "catalog", "decoding", "lm", "training"},
    "sft": {"catalog", "lm", "decoding", "metrics", "training"},
    "ltr": {"data"},
    "alignment": {"data", "catalog", "lm", "decoding", "ltr", "metrics", "training"},
}
ENTRIES = {ROOT / "leadre" / "prompts" / "show.py"}
"""Commands that live in a room, for its name, and stand above all rooms, as train.py does."""
MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / "leadre").rglob("*.py"))


def _imported_rooms(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("leadre.")}


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_only_what_it_may(room):
    files = set((ROOT / "leadre" / room).rglob("*.py")) - ENTRIES
    assert files
    for path in files:
        assert _imported_rooms(path) <= MAY_IMPORT[room] | GROUND | {room}, path


def test_every_room_is_in_the_table():
    rooms = {path.name for path in (ROOT / "leadre").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == set(MAY_IMPORT)


def test_settings_import_nothing_heavy():
    for path in (ROOT / "leadre").rglob("config.py"):
        if path.parent.name == "leadre":
            continue
        tree = ast.parse(path.read_text())
        modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        outside = {name.split(".")[0] for name in modules if not name.startswith("leadre")}
        assert outside <= {"typing", "pydantic", "collections", "pathlib"}, path
        assert {name.split(".")[-1] for name in modules if name.startswith("leadre.")} <= {"settings", "config"}, path


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_module_imports(path):
    if path.name.startswith("triton_"):  # kernels for GPUs: their twins in torch run anywhere
        pytest.importorskip("triton")
    importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))


def test_no_stage_is_named_without_a_version():
    for path in (ROOT / "leadre").rglob("*.py"):
        source = path.read_text()
        if "out: Path" in source and path.parent.name != "training" and path.name not in {"artifacts.py"}:
            verbs = [
                node.name
                for node in ast.parse(source).body
                if isinstance(node, ast.FunctionDef)
                and not node.name.startswith("_")
                and node.returns is not None
                and ast.unparse(node.returns) == "None"  # a stage leaves files; what returns something is part of one
                and any(argument.arg == "out" for argument in node.args.kwonlyargs)
            ]
            assert not verbs or "VERSION = " in source, path
