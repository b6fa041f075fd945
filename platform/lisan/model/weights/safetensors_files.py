"""Finds, reads and writes the safetensors files of a model folder, in files of bounded size with an index.

Reads the files that transformers reads and ignores others in the folder.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lisan.core.errors import DataError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_FILE_BYTES = 4 * 2**30

Tensors = dict[str, torch.Tensor]


def list_weights(folder: Path) -> list[str]:
    """Return the names of a model's weight files, present or not: the single file, those of the index, or all *.safetensors.

    A repository may hold other files, such as Mistral's `consolidated.safetensors` with the same weights, or an adapter's.
    """
    if (folder / WEIGHTS).exists():
        return [WEIGHTS]
    if not (folder / INDEX).exists():
        return sorted(path.name for path in folder.glob("*.safetensors"))
    try:
        return sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder / INDEX} has no weight_map of tensors and their files; download the model again"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """Return the paths of the weight files; DataError when there are none or one of the index is missing."""
    files = [folder / name for name in list_weights(folder)]
    if not files:
        raise DataError(f"{folder} has no *.safetensors; save the model with transformers' save_pretrained first")
    if missing := [file.name for file in files if not file.exists()]:
        raise DataError(f"{folder} lacks {missing[0]}, which its {INDEX} names; copy or download the model again")
    return files


@contextmanager
def open_weights(file: Path) -> Iterator[Any]:
    """Open a safetensors file; DataError when it is truncated or in another format."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except SafetensorError as error:
        raise DataError(f"{file} is cut off or no safetensors file ({error}); copy or download it again") from error


def read_tensors(file: Path) -> Tensors:
    """Return all tensors of a file."""
    with open_weights(file) as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a mapping


def locate_tensors(folder: Path) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Return the file and the shape of every tensor of a folder, without reading one."""
    found = {}
    for file in weight_files(folder):
        with open_weights(file) as opened:
            for name in opened.keys():  # noqa: SIM118  # not a mapping
                found[name] = file, tuple(opened.get_slice(name).get_shape())
    return found


class WeightWriter:
    """Writes tensors to files of bounded size with the file names that transformers, vLLM and llama.cpp expect.

    Holds the tensors of one file; a tensor beyond `max_bytes` gets a file of its own. `convert` renames or splits the tensors
    of a file before they are written.
    """

    def __init__(self, folder: Path, max_bytes: int, convert: Callable[[Tensors], Tensors] = dict) -> None:
        self.folder, self.max_bytes, self.convert = folder, max_bytes, convert
        self.pending: Tensors = {}
        self.file_numbers: dict[str, int] = {}
        self.num_bytes = self.num_files = self.total_bytes = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        if self.pending and self.num_bytes + tensor.nbytes > self.max_bytes:
            self._write()
        self.pending[name] = tensor.contiguous()
        self.num_bytes += tensor.nbytes

    def close(self) -> None:
        """Write the remaining tensors, give every file its final name, and write the index."""
        self._write()
        names = {
            number: f"model-{number:05d}-of-{self.num_files:05d}.safetensors" for number in range(1, self.num_files + 1)
        }
        if self.num_files == 1:
            names = {1: WEIGHTS}
        for number, name in names.items():
            self._unnamed_file(number).rename(self.folder / name)
        if self.num_files > 1:
            weight_map = {name: names[number] for name, number in sorted(self.file_numbers.items())}
            index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
            (self.folder / INDEX).write_text(json.dumps(index, indent=1))

    def _write(self) -> None:
        from safetensors.torch import save_file

        named = {name: tensor.contiguous() for name, tensor in self.convert(self.pending).items()}
        self.num_files += 1
        self.file_numbers |= dict.fromkeys(named, self.num_files)
        self.total_bytes += sum(tensor.nbytes for tensor in named.values())
        save_file(named, self._unnamed_file(self.num_files), metadata={"format": "pt"})
        self.pending, self.num_bytes = {}, 0

    def _unnamed_file(self, number: int) -> Path:
        return self.folder / f"part-{number}.safetensors"
