"""From YAML and overrides to one frozen object, with a schema of the test's own."""

import pickle
import sys
from dataclasses import FrozenInstanceError, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from lisan.core.command_line.run_job import sentences
from lisan.core.config import compose, load
from lisan.core.errors import ConfigError, DataError
from lisan.core.identity import NOT_IDENTITY, fingerprint, flatten, to_plain


class Colour(StrEnum):
    red = "red"
    blue = "blue"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wheel:
    size: int = 20
    polished_every: int = field(default=7, metadata=NOT_IDENTITY)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"wheel.size must be >= 1, got {self.size}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Where:
    root: str = "/here"


@dataclass(frozen=True, kw_only=True, slots=True)
class Bicycle:
    name: str
    colour: Colour = Colour.red
    wheel: Wheel = field(default_factory=lambda: Wheel(size=28))
    spare: Wheel | None = None
    gears: tuple[int, ...] = (1, 2)
    bags: dict[str, Wheel] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    rate: float = 1.0
    storage: Where = field(default_factory=Where, metadata=NOT_IDENTITY)


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    (tmp_path / "wheel").mkdir()
    (tmp_path / "wheel" / "small.yaml").write_text("size: 16\n")
    (tmp_path / "ride.yaml").write_text("defaults: [ride_schema, {wheel: small}, _self_]\nname: first\n")
    (tmp_path / "bare.yaml").write_text("defaults: [bare_schema, _self_]\n")
    return tmp_path


def test_the_yaml_chooses_and_the_dataclass_defines(conf: Path) -> None:
    config = compose(conf, "ride", Bicycle, [])
    assert config == Bicycle(name="first", wheel=Wheel(size=16))


def test_any_field_is_overridable_to_any_depth(conf: Path) -> None:
    config = compose(
        conf, "ride", Bicycle, ["colour=blue", "wheel.size=24", "gears=[1,3,5]", "rate=2", "+weights.a=0.5"]
    )
    assert (config.colour, config.wheel.size, config.gears, config.rate) == (Colour.blue, 24, (1, 3, 5), 2.0)
    assert config.weights == {"a": 0.5}


def test_values_lie_over_the_overrides(conf: Path) -> None:
    config = compose(conf, "ride", Bicycle, ["rate=2"], {"rate": 3, "bags": {"left": {"size": 5}}})
    assert config.rate == 3
    assert config.bags == {"left": Wheel(size=5)}


def test_a_loaded_config_is_frozen_and_pickles(conf: Path) -> None:
    config = compose(conf, "ride", Bicycle, ["+weights={a: 1}"])
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(FrozenInstanceError):
        config.rate = 2.0  # type: ignore[misc]


def test_a_plain_form_loads_to_the_same_object() -> None:
    config = Bicycle(name="n", colour=Colour.blue, bags={"left": Wheel(size=5)}, spare=Wheel(size=3), gears=(7,))
    assert load(Bicycle, to_plain(config)) == config


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["wheel.sise=3"], r"wheel\.sise.*did you mean wheel\.size\?"),
        (["rate=fast"], r"rate.*fast|fast.*rate"),
        (["colour=green"], r"green.*red, blue|colour"),
        (["wheel=big"], r"wheel/big.*small"),
        (["wheel.size=0"], r"wheel\.size must be >= 1, got 0"),
        (["gears=[1,two]"], r"two"),
        (["colour="], r"colour"),
        (["wheel.size"], r"wheel\.size"),
    ],
)
def test_a_mistake_is_one_sentence(overrides: list[str], said: str, conf: Path) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        compose(conf, "ride", Bicycle, overrides)
    assert "\n" not in str(caught.value)
    assert "object_type" not in str(caught.value)


@pytest.mark.parametrize("override", ["spare.size=9", "+spare.size=9", "spare={size: 9}"])
def test_an_override_below_a_field_that_is_null_is_one_sentence(override: str, conf: Path) -> None:
    with pytest.raises(ConfigError, match=r"ride: one of .*spare.*9.* below a field that is null or not set"):
        compose(conf, "ride", Bicycle, [override])


def test_a_yaml_fills_a_field_that_is_null(conf: Path) -> None:
    (conf / "ride.yaml").write_text("defaults: [ride_schema, _self_]\nname: first\nspare: {size: 9}\n")
    assert compose(conf, "ride", Bicycle, ["spare.size=10"]).spare == Wheel(size=10)


def test_a_field_without_a_value_is_named(conf: Path) -> None:
    with pytest.raises(ConfigError, match=r"^name must be set: add name=\.\.\."):
        compose(conf, "bare", Bicycle, [])


def test_an_unknown_field_of_the_values_is_refused_with_its_neighbour(conf: Path) -> None:
    with pytest.raises(ConfigError, match="wheal"):
        compose(conf, "ride", Bicycle, [], {"wheal": {"size": 3}})


def test_composing_leaves_no_trace_in_hydra(conf: Path) -> None:
    from hydra.core.global_hydra import GlobalHydra

    compose(conf, "ride", Bicycle, [])
    assert not GlobalHydra.instance().is_initialized()
    with pytest.raises(ConfigError):
        compose(conf, "ride", Bicycle, ["nothing=1"])
    assert not GlobalHydra.instance().is_initialized()


def test_the_fingerprint_leaves_out_where_it_runs_and_nothing_else() -> None:
    mark = fingerprint(Bicycle(name="n"))
    assert fingerprint(Bicycle(name="n", storage=Where(root="/there"))) == mark
    assert fingerprint(Bicycle(name="n", wheel=Wheel(size=28, polished_every=1))) == mark
    assert fingerprint(Bicycle(name="n", wheel=Wheel(size=29))) != mark
    assert fingerprint(Bicycle(name="m")) != mark


def test_the_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint(Bicycle(name="n", weights={"a": 1.0, "b": 2.0})) == fingerprint(
        Bicycle(name="n", weights={"b": 2.0, "a": 1.0})
    )


def test_plain_values_are_json() -> None:
    import json

    plain = to_plain({"path": Path("/a"), "colour": Colour.red, "tuple": (1, 2), 3: None})
    assert json.loads(json.dumps(plain)) == {"path": "/a", "colour": "red", "tuple": [1, 2], "3": None}


def test_flattening_gives_dotted_keys() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DataError("the text is not UTF-8"), "DataError: the text is not UTF-8"),
        (OSError(28, "No space left on device", "/full/disk"), "cannot write /full/disk: No space left on device"),
        (PermissionError(13, "Permission denied", "/root"), "cannot write /root"),
        (NotADirectoryError(20, "Not a directory", "/file/x"), "cannot write /file/x"),
    ],
)
def test_an_error_of_a_user_is_one_line_and_exit_code_1(error: Exception, said: str) -> None:
    with pytest.raises(SystemExit, match=said) as caught, sentences():
        raise error
    assert isinstance(caught.value.code, str)  # Python prints it to stderr and exits with 1


def test_an_unexpected_error_keeps_its_trace() -> None:
    with pytest.raises(ZeroDivisionError), sentences():
        raise ZeroDivisionError


def test_core_imports_without_hydra() -> None:
    import subprocess

    code = "import sys, lisan.core.config, lisan.core.stage; sys.exit('hydra' in sys.modules or 'omegaconf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_null_stays_null(conf: Path) -> None:
    config: Any = compose(conf, "ride", Bicycle, ["spare=null"])
    assert config.spare is None
