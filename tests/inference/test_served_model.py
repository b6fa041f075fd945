"""The model folder to serve: found by path, reference or alias, and checked."""

import pytest

from lisan.core.errors import ArtifactError, ConfigError, ServingError
from lisan.core.stage import StorageConfig
from lisan.core.storage import Location
from lisan.inference.config import ServeConfig
from lisan.inference.served_model import check_model_folder, find_served_model


def test_a_model_folder_is_found_under_the_name_that_clients_use(model_folder):
    found = find_served_model(ServeConfig(model="atlas", path=str(model_folder)))
    assert (found.name, str(found.folder)) == ("atlas", str(model_folder))


def test_a_relative_path_is_made_absolute_because_replicas_run_in_other_folders(model_folder, monkeypatch):
    monkeypatch.chdir(model_folder.parent)
    assert str(find_served_model(ServeConfig(path="model")).folder) == str(model_folder)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_part_of_a_model_is_refused_naming_it(model_folder, missing):
    (model_folder / missing).unlink()
    with pytest.raises(ServingError, match=missing.removeprefix("model")):
        check_model_folder(Location(str(model_folder)), "it")


@pytest.mark.parametrize("content", ["not json", "[]", "{}"])
def test_a_config_that_names_no_architecture_is_refused(model_folder, content):
    (model_folder / "config.json").write_text(content)
    with pytest.raises(ServingError, match=r"config\.json"):
        check_model_folder(Location(str(model_folder)), "it")


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ServingError, match="is not a model folder"):
        find_served_model(ServeConfig(path=str(tmp_path / "nothing")))


def test_a_reference_to_a_missing_artifact_names_what_exists(tmp_path):
    with pytest.raises(ArtifactError, match="model/x@v1 does not exist"):
        find_served_model(ServeConfig(path="model/x@v1", storage=StorageConfig(root=str(tmp_path))))


def test_an_adapter_is_refused_because_only_merged_models_are_served(tmp_path):
    with pytest.raises(ConfigError, match="expected a model"):
        find_served_model(ServeConfig(path="adapter/x@v1", storage=StorageConfig(root=str(tmp_path))))
