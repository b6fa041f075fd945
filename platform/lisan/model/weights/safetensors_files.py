"""The safetensors files of a model's folder: which of them hold its weights, what lies in them, and new ones of bounded size.

In: a folder, or tensors one after the other. Out: files in the order of their names, opened or refused, or written with the index
that readers of several need. Always: the files are those that transformers reads, whatever else lies beside them.
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
    """Return the names of the files that hold a model's weights, whether or not they are there yet; none where nothing says so.

    Beside them a repository may keep the same weights once more (Mistral's `consolidated.safetensors`), or an adapter's.
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
    """Return the files that hold the model's weights; DataError where there are none, or not all that the index names."""
    files = [folder / name for name in list_weights(folder)]
    if not files:
        raise DataError(f"{folder} has no *.safetensors; save the model with transformers' save_pretrained first")
    if lost := [file.name for file in files if not file.exists()]:
        raise DataError(f"{folder} lacks {lost[0]}, which its {INDEX} names; copy or download the model again")
    return files


@contextmanager
def open_weights(file: Path) -> Iterator[Any]:
    """Open a safetensors file as the library does; DataError where it is cut off, or no such file at all."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except SafetensorError as error:
        raise DataError(f"{file} is cut off or no safetensors file ({error}); copy or download it again") from error


def read_tensors(file: Path) -> Tensors:
    """Return all that lies in a file."""
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
    """Writes tensors to files of bounded size under the names that transformers, vLLM and llama.cpp know.

    No more is held than the tensors of one file; a tensor beyond `max_bytes` gets a file of its own. `convert` renames the
    tensors of a file, or takes them apart, before they are written.
    """

    def __init__(self, folder: Path, max_bytes: int, convert: Callable[[Tensors], Tensors] = dict) -> None:
        self.folder, self.max_bytes, self.convert = folder, max_bytes, convert
        self.waiting: Tensors = {}
        self.places: dict[str, int] = {}
        self.num_bytes = self.num_files = self.total_bytes = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        if self.waiting and self.num_bytes + tensor.nbytes > self.max_bytes:
            self._write()
        self.waiting[name] = tensor.contiguous()
        self.num_bytes += tensor.nbytes

    def close(self) -> None:
        """Write what is left, and give every file its name, which says how many there are."""
        self._write()
        names = {
            number: f"model-{number:05d}-of-{self.num_files:05d}.safetensors" for number in range(1, self.num_files + 1)
        }
        if self.num_files == 1:
            names = {1: WEIGHTS}
        for number, name in names.items():
            self._part(number).rename(self.folder / name)
        if self.num_files > 1:
            places = {name: names[number] for name, number in sorted(self.places.items())}
            index = {"metadata": {"total_size": self.total_bytes}, "weight_map": places}
            (self.folder / INDEX).write_text(json.dumps(index, indent=1))

    def _write(self) -> None:
        from safetensors.torch import save_file

        named = {name: tensor.contiguous() for name, tensor in self.convert(self.waiting).items()}
        self.num_files += 1
        self.places |= dict.fromkeys(named, self.num_files)
        self.total_bytes += sum(tensor.nbytes for tensor in named.values())
        save_file(named, self._part(self.num_files), metadata={"format": "pt"})
        self.waiting, self.num_bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number}.safetensors"
