"""The plan of the house: imports point down only, and every module has its floor."""

import ast
import pathlib

import tfcompress

ROOT = pathlib.Path(tfcompress.__file__).parent

# A module imports its own family and lower floors; families of one floor do not know each other.
FLOORS = [
    {"errors", "files", "registry", "silence"},
    {
        "graph",
        "weights",
        "rules",
        "projection",
        "sharing",
        "latent",
        "lookup",
        "measure",
        "pooling",
        "schedules",
        "models",
    },
    {"pruning", "clustering", "quantization", "data"},
    {"tflite"},
    {"structured", "packing"},
    {"clustered"},
    {"callbacks", "wrappers", "legacy"},
    {"recipe", "pipeline", "report", "search"},
    {"analyze", "archive", "commands", "compress", "export", "latency"},
]
# Floors 0, 1, 7 and 8 are built of single files that may use one another.
OPEN_FLOORS = {0, 1, 7, 8}


def floor_of(family: str) -> int:
    return next(number for number, families in enumerate(FLOORS) if family in families)


def imported_families(path: pathlib.Path) -> set[str]:
    families = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.module == "tfcompress":
                families |= {alias.name for alias in node.names}
            elif node.module and node.module.startswith("tfcompress."):
                families.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            families |= {
                alias.name.split(".")[1]
                for alias in node.names
                if alias.name.startswith("tfcompress.")
            }
    return families


def test_imports_point_down():
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        family = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if family == "__init__":
            continue
        here = floor_of(family)
        for other in imported_families(path) - {family}:
            there = floor_of(other)
            if there > here or (there == here and here not in OPEN_FLOORS):
                wrong.append(f"{path.relative_to(ROOT)} imports {other}")
    assert not wrong, wrong


def test_keras_is_imported_as_keras():
    wrong = [
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if "legacy" not in path.parts and "tf.keras" in path.read_text()
    ]
    assert not wrong, wrong


def test_files_stay_readable():
    long_files = {
        str(path.relative_to(ROOT)): lines
        for path in ROOT.rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long_files, long_files
