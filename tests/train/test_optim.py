"""Learning rates and the optimizer."""

import pytest
import torch
from torch import nn

from lisan.core.errors import ConfigError
from lisan.train.optim import check_moments, learning_rate, make_optimizer, set_rate
from lisan.train.options import MomentType, OptimConfig, Schedule

STEPS = 100


def rates(**values: object) -> list[float]:
    config = OptimConfig(**{"peak_lr": 1.0, "warmup_steps": 10, **values})  # type: ignore[arg-type]
    return [learning_rate(step, STEPS, config) for step in range(STEPS)]


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    OptimConfig(warmup_steps=4).check_warmup(4)
    with pytest.raises(
        ConfigError, match=r"optim\.warmup_steps=40 is longer than the run of 39 steps.* set optim\.warmup_steps=3"
    ):
        OptimConfig(warmup_steps=40).check_warmup(39)


@pytest.mark.parametrize("schedule", Schedule)
def test_warming_up_is_linear_and_reaches_the_peak(schedule: Schedule) -> None:
    assert rates(schedule=schedule)[:11] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0])


def test_constant_stays() -> None:
    assert set(rates(schedule=Schedule.constant)[10:]) == {1.0}


def test_cosine_falls_to_its_final_share() -> None:
    found = rates(schedule=Schedule.cosine, final_lr_ratio=0.1)
    assert found[10:] == sorted(found[10:], reverse=True)
    assert found[55] == pytest.approx(0.55)
    assert found[-1] == pytest.approx(0.1, abs=1e-3)


def test_wsd_stays_and_then_falls_linearly() -> None:
    found = rates(schedule=Schedule.wsd, final_lr_ratio=0.0, decay_ratio=0.5)
    assert set(found[10:55]) == {1.0}
    assert found[55:] == pytest.approx([(100 - step) / 45 for step in range(55, 100)])


def test_steps_beyond_the_last_keep_the_final_rate() -> None:
    config = OptimConfig(peak_lr=1.0, warmup_steps=0, final_lr_ratio=0.2)
    assert learning_rate(500, STEPS, config) == pytest.approx(0.2)


def test_no_warming_up_begins_at_the_peak() -> None:
    assert rates(warmup_steps=0)[0] == 1.0


def test_warming_up_longer_than_the_run_never_reaches_the_peak() -> None:
    assert max(rates(warmup_steps=200)) == 0.5


def test_matrices_decay_and_vectors_do_not() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    matrices, vectors = make_optimizer(model, OptimConfig(weight_decay=0.3)).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)
    assert [tuple(p.shape) for p in matrices["params"]] == [(4, 3)]
    assert len(vectors["params"]) == 3


def test_what_is_frozen_is_not_optimised() -> None:
    model = nn.Linear(3, 4)
    model.bias.requires_grad_(False)
    [group] = make_optimizer(model, OptimConfig()).param_groups
    assert [tuple(p.shape) for p in group["params"]] == [(4, 3)]


def test_a_step_is_that_of_adamw_as_published() -> None:
    """Loshchilov and Hutter 2019, one step from zero moments: w (1 - lr decay) - lr sign(g)."""
    model = nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    optimizer = make_optimizer(model, OptimConfig(peak_lr=0.1, weight_decay=0.5))
    model.weight.grad = torch.tensor([[3.0, -4.0]])
    optimizer.step()
    assert torch.allclose(model.weight, before * 0.95 - 0.1 * torch.tensor([[1.0, -1.0]]), atol=1e-6)


def test_moments_in_bytes_without_their_library_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lisan.train.optim.find_spec", lambda _: None)
    check_moments(OptimConfig())
    with pytest.raises(ConfigError, match=r"optim\.moments=int8 needs torchao, .* pip install -e '\.\[int8\]'"):
        check_moments(OptimConfig(moments=MomentType.int8))


@pytest.mark.parametrize("is_tensor", [True, False])
def test_the_rate_of_a_step_is_set_in_place_where_it_is_a_tensor(is_tensor: bool) -> None:
    optimizer = make_optimizer(nn.Linear(3, 4), OptimConfig())
    first = optimizer.param_groups[0]["lr"] = torch.tensor(1.0) if is_tensor else 1.0
    set_rate(optimizer, 0.25)
    assert [float(group["lr"]) for group in optimizer.param_groups] == [0.25, 0.25]
    assert (optimizer.param_groups[0]["lr"] is first) is is_tensor


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"peak_lr": 0}, r"optim\.peak_lr must be > 0, got 0"),
        ({"peak_lr": float("nan")}, r"optim\.peak_lr must be > 0, got nan"),
        ({"warmup_steps": -1}, "warmup_steps >= 0"),
        ({"final_lr_ratio": 1.5}, r"final_lr_ratio in 0\.\.1"),
        ({"decay_ratio": 0}, r"decay_ratio in 0\.\.1"),
        ({"max_grad_norm": 0}, r"optim\.max_grad_norm must be > 0, got 0"),
        ({"z_loss": -1}, r"optim\.z_loss must be >= 0, got -1"),
    ],
)
def test_an_impossible_optimizer_is_refused(values: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        OptimConfig(**values)  # type: ignore[arg-type]
