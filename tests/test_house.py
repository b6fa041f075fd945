"""The house rules of the architecture, read off the source: who may import whom, names, docstrings, what a job uploads."""

import ast
import fnmatch
import importlib.util
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from lisan.recipes.jobs import JOBS

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "platform" / "lisan"
RANKS = {
    "core": 0,
    "records": 1,
    "cluster": 1,
    "tracking": 1,
    "reporting": 1,
    "model": 2,
    "microworld": 2,
    "corpus": 3,
    "tokenizer": 4,
    "data": 5,
    "train": 6,
    "inference": 6,
    "export": 6,
    "evaluate": 7,
    "synth": 8,
    "serve": 8,
    "recipes": 9,
    "jobs": 10,
    "serve_apps": 10,
}
"A room imports only from rooms of a lower rank, and from itself."
KNOWN_ONLY_TO = {
    "ray": {
        "lisan/cluster/ray.py",
        "lisan/corpus/build_corpus.py",
        "lisan/data/ray_stream.py",
        "lisan/train/launch.py",
        "lisan/train/ray_state.py",
        "lisan/train/preference/score_parts.py",
        "lisan/inference/endpoint.py",
        "lisan/inference/vllm.py",
        "lisan/serve/app.py",
        "serve_apps/chat.py",
    },
    "mlflow": {f"lisan/tracking/{name}.py" for name in ("client", "recorder", "runs", "models")},
    "peft": {"lisan/model/adapters/lora.py"},
    "bitsandbytes": {"lisan/model/adapters/nf4.py"},
    "gguf": {"lisan/export/gguf.py"},
    "torchao": {"lisan/model/float8.py", "lisan/train/optim.py"},
    "hydra": {"lisan/core/config.py", "lisan/core/command_line/run_job.py"},
    "omegaconf": {"lisan/core/config.py", "lisan/core/command_line/run_job.py"},
}
BANNED = re.compile(r"(^|_)(utils?|helpers?|managers?|handlers?|processors?|common|misc)(_|$)", re.IGNORECASE)
MAX_UPLOAD_BYTES = 5_000_000


def sources() -> list[Path]:
    folders = (PACKAGE, REPOSITORY / "jobs", REPOSITORY / "serve_apps")
    return sorted(file for folder in folders for file in folder.rglob("*.py"))


def name_of(file: Path) -> str:
    return str(file.relative_to(REPOSITORY)).removeprefix("platform/")


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports(file: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, anywhere in it."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(file)} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(dotted: str) -> str:
    return dotted.removeprefix("lisan.").split(".")[0]


def own_room(file: Path) -> str:
    return room(name_of(file).removesuffix(".py").replace("/", "."))


FILES = [pytest.param(file, id=name_of(file)) for file in sources()]


@pytest.mark.parametrize("file", FILES)
def test_a_room_imports_only_from_lower_rooms(file: Path) -> None:
    own = own_room(file)
    if file == PACKAGE / "__init__.py":
        assert not list(imports(file))
        return
    for dotted in imports(file):
        if dotted.startswith("lisan.") and room(dotted) != own:
            assert RANKS[room(dotted)] < RANKS[own], (
                f"{name_of(file)} (rank {RANKS[own]}) imports {dotted} (rank {RANKS[room(dotted)]})"
            )


def test_no_files_import_each_other_in_a_circle() -> None:
    modules = {
        name_of(file).removesuffix(".py").replace("/", ".").removesuffix(".__init__"): file for file in sources()
    }
    wanted = {
        name: {
            module for dotted in imports(file) for module in (dotted, dotted.rpartition(".")[0]) if module in modules
        }
        for name, file in modules.items()
    }
    graph = TopologicalSorter({name: {one for one in found if one != name} for name, found in wanted.items()})
    graph.prepare()  # CycleError names the files


def test_every_room_has_a_rank() -> None:
    assert {own_room(file) for file in sources() if file != PACKAGE / "__init__.py"} == set(RANKS)


@pytest.mark.parametrize("library", KNOWN_ONLY_TO)
def test_a_library_is_known_to_its_files_only(library: str) -> None:
    knowing = {name_of(file) for file in sources() if any(dotted.split(".")[0] == library for dotted in imports(file))}
    assert knowing == KNOWN_ONLY_TO[library]


HEAVY = (
    "torch",
    "ray",
    "transformers",
    "mlflow",
    "peft",
    "vllm",
    "lm_eval",
    "matplotlib",
    "numpy",
    "pyarrow",
    "jinja2",
)


def imported_by(code: str) -> set[str]:
    """Return the heavy libraries that code imports in a process of its own."""
    report = f"import sys; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"{code}; {report}"], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("job", sorted(JOBS))
def test_the_config_of_a_job_imports_no_heavy_library(job: str) -> None:
    assert imported_by(f"from lisan.recipes.jobs import JOBS; JOBS[{job!r}].config") == set()


def test_the_config_of_a_pipeline_imports_no_heavy_library() -> None:
    assert imported_by("import lisan.recipes.run_pipeline") == set()


def test_the_config_of_training_does_not_reach_the_loop() -> None:
    code = "import sys, lisan.train.config; assert not {'lisan.train.loop', 'lisan.train.run'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_loop_reaches_no_page_and_no_launcher() -> None:
    code = "import sys, lisan.train.loop; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not {name for name in loaded if name.startswith("lisan.reporting") or name.endswith("_page")}
    assert not loaded & {"ray", "mlflow", "lisan.train.launch", "lisan.train.stages"}


@pytest.mark.parametrize(
    "module", ["lisan.core.config", "lisan.corpus.chain", "lisan.tokenizer.chat.chat_template", "lisan.evaluate.tasks"]
)
def test_pure_modules_import_without_ray_mlflow_or_transformers(module: str) -> None:
    heavy = "'ray', 'mlflow', 'transformers', 'peft', 'vllm', 'hydra'"
    code = f"import sys, {module}; print([name for name in ({heavy}) if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY / "platform"
    )
    assert done.stdout.strip() == "[]"


def test_files_of_artifacts_are_fetched_through_the_check_of_their_hashes() -> None:
    calls = re.compile(r"\.local_(folder|file)\(")
    raw = [name_of(file) for file in sources() if calls.search(file.read_text(encoding="utf-8"))]
    assert raw == ["lisan/core/integrity.py"]


def test_platform_is_the_standard_librarys() -> None:
    assert not (REPOSITORY / "platform" / "__init__.py").exists()
    code = "import platform, uuid; print(platform.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert Path(done.stdout.strip()).parent == Path(ast.__file__).parent


@pytest.mark.parametrize("folder", ["jobs", "serve_apps"])
def test_no_script_shadows_a_module(folder: str) -> None:
    shadowed = []
    for script in (REPOSITORY / folder).glob("*.py"):
        spec = importlib.util.find_spec(script.stem)
        if spec is not None and (spec.origin is None or not Path(spec.origin).is_relative_to(REPOSITORY)):
            shadowed.append(script.name)
    assert not shadowed


@pytest.mark.parametrize("file", FILES)
def test_names_say_what_things_are(file: Path) -> None:
    defined = (
        node.name
        for node in ast.walk(tree(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    )
    words = [re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name) for name in (*defined, file.stem, file.parent.name)]
    assert not [word for word in words if BANNED.search(word)]


@pytest.mark.parametrize("file", FILES)
def test_every_module_says_what_it_is(file: Path) -> None:
    assert ast.get_docstring(tree(file)), f"{name_of(file)} has no docstring"


@pytest.mark.parametrize("job", sorted((REPOSITORY / "jobs").glob("[!_]*.py")), ids=lambda job: job.stem)
def test_every_job_has_its_config_and_is_short(job: Path) -> None:
    assert (REPOSITORY / "conf" / f"{job.stem}.yaml").exists()
    assert len(job.read_text().splitlines()) <= 15


def test_our_config_classes_are_frozen_keyword_only_and_slotted() -> None:
    wanted = {"frozen", "kw_only", "slots"}
    for file in sources():
        for node in ast.walk(tree(file)):
            is_ours = isinstance(node, ast.ClassDef) and not any(
                ast.unparse(base) == "DataConfig" for base in node.bases
            )  # Ray's
            if is_ours and node.name.endswith("Config"):
                [call] = [d for d in node.decorator_list if isinstance(d, ast.Call)]
                assert {keyword.arg for keyword in call.keywords} >= wanted, f"{name_of(file)}: {node.name}"


def test_what_a_submitted_job_uploads_is_small() -> None:
    """`ray job submit --working-dir .` sends what git keeps less what .rayignore names."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    patterns = [
        line for line in (REPOSITORY / ".rayignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    names = [name for name in listed.stdout.decode().split("\0") if name and (REPOSITORY / name).exists()]
    sent = [name for name in names if not any(is_ignored(name, pattern) for pattern in patterns)]
    assert {"jobs/train_cpt.py", "conf/train_cpt.yaml", "platform/lisan/train/loop.py"} <= set(sent)
    assert not [name for name in sent if name.startswith("tests/")]
    assert sum((REPOSITORY / name).stat().st_size for name in sent) < MAX_UPLOAD_BYTES


def is_ignored(name: str, pattern: str) -> bool:
    """Tell whether a line of .rayignore (a subset of git's syntax) covers a path."""
    bare = pattern.strip("/")
    if pattern.startswith("/"):
        return name == bare or name.startswith(f"{bare}/")
    parts = name.split("/")
    return any(fnmatch.fnmatch(part, bare) for part in (parts[:-1] if pattern.endswith("/") else parts))


@pytest.mark.parametrize(
    ("name", "pattern", "ignored"),
    [
        ("tests/core/test_a.py", "tests/", True),
        ("platform/tests.py", "tests/", False),
        ("a/b.log", "*.log", True),
        ("build/x", "/build/", True),
        ("platform/build/x", "/build/", False),
        ("conf/mlflow.db", "mlflow.db", True),
    ],
)
def test_the_ignore_patterns_are_read_as_git_reads_them(name: str, pattern: str, ignored: bool) -> None:
    assert is_ignored(name, pattern) is ignored


def test_no_file_names_a_machine() -> None:
    """Paths of one person's machine have no place in what is shared."""
    machine = re.compile(r"(?<![\w.])/(?:work|root|home/\w+|Users/\w+)/")
    for file in (*sources(), *(REPOSITORY / "conf").rglob("*.yaml"), REPOSITORY / "README.md"):
        if file.exists():
            found = machine.search(file.read_text(encoding="utf-8"))
            assert found is None, f"{file.name}: {found}"


MAX_FILE_LINES = 300
WORD_LISTS = {
    "lisan/microworld/arabic.py": "sentences of the world in Arabic",
    "lisan/microworld/darija.py": "sentences of the world in Darija",
    "lisan/microworld/english.py": "sentences of the world in English",
    "lisan/microworld/countries.py": "names and facts of countries",
}
"Files that may be longer, because they are tables of words."


def test_files_are_short() -> None:
    too_long = {
        name_of(file) for file in sources() if len(file.read_text(encoding="utf-8").splitlines()) > MAX_FILE_LINES
    }
    assert too_long <= set(WORD_LISTS)


def test_no_two_files_have_one_name() -> None:
    names = [
        file.name for file in PACKAGE.rglob("*.py") if file.name not in ("config.py", "__init__.py", "__main__.py")
    ]
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_no_two_public_classes_have_one_name() -> None:
    names = [
        node.name
        for file in PACKAGE.rglob("*.py")
        for node in tree(file).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert [name for name, count in Counter(names).items() if count > 1] == []
