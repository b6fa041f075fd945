"""The private API of other libraries that the package uses: each with its reason, and a test that names it when it is gone."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "platform" / "lisan"

IMPORTED = {
    "hydra._internal.config_repository.CachingConfigRepository": "a plain field may have the name of a group, such as model",
    "omegaconf._utils": "its YAML loader turns 1e3, 1.10 and on into numbers and booleans before the field's type is known",
    "ray._private.log.PlainRayHandler": "Ray Train prints the trace of an error that is printed as one sentence",
    "ray._private.ray_logging.global_worker_stdstream_dispatcher": "workers that end with a job print traces",
    "ray._private.runtime_env.constants.RAY_JOB_CONFIG_JSON_ENV_VAR": "Ray refuses a variable that the submitted job has too",
    "ray._private.services.canonicalize_bootstrap_address_or_die": "workers need the address that `auto` stands for",
    "ray.llm._internal.serve.engines.vllm.vllm_engine.VLLMEngine": "the engine computes in one process, 7 s less to start",
    "ray.serve.context._get_global_client": "Serve has no public way to ask where it listens",
    "ray.train.v2._internal.execution.callback.WorkerGroupCallback": "the only notice of a worker group that starts again",
    "ray.train.v2._internal.execution.context.logger": "it prints every report with all metrics",
    "torch.distributed.distributed_c10d._get_default_store": "ranks agree on an error without a collective",
    "torch.distributed.distributed_c10d._set_pg_timeout": "a collective of a step may wait less long than one of set-up",
    "torch.distributed.tensor._utils.compute_local_shape_and_global_offset": "the rows of a sharded matrix that a rank holds",
    "torch.nn.utils.stateless._reparametrize_module": "PEFT merges a layer over whole copies of its sharded weights",
    "torch.utils._python_dispatch.TorchDispatchMode": "the only way to record what initialises a model on `meta`",
    "torch.utils._pytree.tree_flatten": "the tensors of nested training state",
    "torch.utils._pytree.tree_unflatten": "the tensors of nested training state",
}
"Imports, by their dotted name."

ATTRIBUTES = {
    "omegaconf.DictConfig._get_node": "a field's node, where indexing would resolve or raise",
    "omegaconf.DictConfig._is_none": "whether a nested config is null",
    "omegaconf.DictConfig._is_missing": "whether a nested config is not set",
    "ray._private.worker._global_node": "whether a process of the Ray that this process started has died",
    "ray.experimental.internal_kv._internal_kv_put": "the key-value store of a cluster, which outlives its workers",
    "ray.experimental.internal_kv._internal_kv_get": "the key-value store of a cluster, which outlives its workers",
    "ray.experimental.internal_kv._internal_kv_del": "the key-value store of a cluster, which outlives its workers",
    "ray.llm._internal.serve.engines.vllm.vllm_engine.VLLMEngine._prepare_engine_config": "overridden: Ray writes the mp executor",
    "torch.ops.mkldnn._is_mkldnn_bf16_supported": "whether torch's kernels may use bf16 instructions",
    "torch.nn.Module._parameters": "a parameter on `meta` is replaced under its name",
    "torch.nn.Module._non_persistent_buffers_set": "which buffers belong to a model's files",
    "torch.UntypedStorage._cdata": "which tensors on `meta` share a storage; data_ptr is 0 there",
    "torch._ops.OpOverload._schema": "whether an operator changes its first argument",
    "torch.distributed.tensor.DTensor._spec": "a copy of a DTensor keeps mesh and placements",
    "transformers.PreTrainedConfig._attn_implementation": "the attention kernel that a model was loaded with",
    "transformers.PreTrainedModel._can_set_attn_implementation": "which attention kernels a model has",
    "transformers.PreTrainedModel._supports_flash_attn": "which attention kernels a model has",
    "transformers.PreTrainedModel._supports_flex_attn": "which attention kernels a model has",
    "transformers.PreTrainedTokenizerFast._tokenizer": "the tokenizers object, whose batch encoding is the fast one",
}
"Attributes of modules, classes and their instances, by the dotted name of their owner."


NO_PRIVATE_API = {"_exit", "_private"}
"`os._exit` is public; `ray._private` is the middle of a longer name."


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names(tree: ast.Module) -> set[str]:
    """Return what a file itself defines: functions, classes and attributes of self."""
    nodes = list(ast.walk(tree))
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    return defined | {node.attr for node in nodes if isinstance(node, ast.Attribute) and of_self(node)}


def of_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def find_private(file: Path) -> Iterator[tuple[str, str]]:
    """Yield every private name of another library in a file: ("import", dotted name) or ("attribute", last name)."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    own = own_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(("lisan", "__")):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (("import", name) for name in names if any(map(is_private, name.split("."))))
        elif isinstance(node, ast.Import):
            assert not any(is_private(part) for alias in node.names for part in alias.name.split(".")), file
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            yield "attribute", node.attr


def test_the_lists_are_complete_and_nothing_on_them_is_unused() -> None:
    found = {name for file in sorted(PACKAGE.rglob("*.py")) for name in find_private(file)}
    overridden = {name.rpartition(".")[2] for name, reason in ATTRIBUTES.items() if reason.startswith("overridden")}
    assert {name for kind, name in found if kind == "import"} == set(IMPORTED)
    attributes = {name for kind, name in found if kind == "attribute"} - NO_PRIVATE_API
    assert attributes | overridden == {name.rpartition(".")[2] for name in ATTRIBUTES}


def resolve(dotted: str) -> object:
    """Import the longest prefix that is a module and follow the attributes behind it."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(dotted)


def is_attribute(owner: object, name: str) -> bool:
    """Tell whether instances of a class have the attribute: declared, annotated or set by a constructor."""
    if hasattr(owner, name):
        return True
    for one in owner.__mro__ if isinstance(owner, type) else ():
        constructor = getattr(vars(one).get("__init__"), "__code__", None)
        if name in vars(one).get("__annotations__", {}) or (constructor is not None and name in constructor.co_names):
            return True
    return False


@pytest.mark.parametrize("name", sorted(IMPORTED))
def test_what_is_imported_is_still_there(name: str) -> None:
    try:
        resolve(name)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{name} is gone ({error}); it was used because: {IMPORTED[name]}")


@pytest.mark.parametrize("name", sorted(ATTRIBUTES))
def test_an_attribute_is_still_there(name: str) -> None:
    owner, _, attribute = name.rpartition(".")
    assert is_attribute(resolve(owner), attribute), f"{name} is gone; it was used because: {ATTRIBUTES[name]}"
