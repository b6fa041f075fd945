"""What is minimised, against the equations, with log-probabilities made by hand."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lisan.core.errors import ConfigError
from lisan.model.config import ModelConfig
from lisan.model.score import Batch, collate
from lisan.train.config import DpoConfig
from lisan.train.objectives import Score, Terms, causal_lm, count_labels, count_pairs, preference
from lisan.train.options import OptimConfig, PreferenceLoss


def batch() -> Batch:
    """Two rows of two documents each: lengths 2 and 3, and 3 and 1; the last token of each row is padding."""
    ids = np.ones((2, 6), np.int32)
    labels = np.array([[-100, 1, -100, 1, 1, -100], [-100, -100, 1, -100, -100, -100]], np.int32)
    return collate(ids, labels, [[2, 3], [3, 1]])


def scores(*values: float) -> Score:
    """Return a model that gives the labelled tokens these log-probabilities, in order."""

    def score(given: Batch, with_log_z: bool = False) -> torch.Tensor:
        logps = torch.zeros(given.labels.shape)
        logps[given.labels >= 0] = torch.tensor(values, dtype=torch.float32)
        return torch.stack([logps, 2 * logps]) if with_log_z else logps

    return score


def test_targets_are_counted_as_the_loss_sees_them() -> None:
    assert count_labels(batch()) == 4
    assert count_pairs(batch()) == 2


def test_a_label_at_the_first_place_is_no_target() -> None:
    one = collate(np.ones((1, 3), np.int32), np.ones((1, 3), np.int32), [[3]])
    assert count_labels(one) == 2


def test_the_causal_loss_is_the_sum_over_labelled_tokens() -> None:
    loss = causal_lm(scores(-1, -2, -3, -4), batch())
    assert (float(loss.total), loss.num_targets) == (10, 4)
    assert loss.row_nll.tolist() == [6, 4]


def test_z_loss_adds_the_square_of_log_z_and_leaves_the_loss_per_row_alone() -> None:
    plain, loss = causal_lm(scores(-1, -2, -3, -4), batch()), causal_lm(scores(-1, -2, -3, -4), batch(), 0.1)
    assert float(loss.total) == pytest.approx(10 + 0.1 * 4 * (1 + 4 + 9 + 16))
    assert loss.row_nll.tolist() == plain.row_nll.tolist()
    assert float(loss.metrics["z_loss"]) == pytest.approx(12)
    assert float(loss.metrics["log_z"]) == -20


def terms(**values: Any) -> Terms:
    return replace(Terms(PreferenceLoss.sigmoid, 0.5, 0.0, False), **values)


def pairs(
    reference: tuple[float, ...] = (-2, -1, -1, -1), kl: float = 0.0, **values: Any
) -> tuple[float, dict[str, float]]:
    """Score chosen -1, rejected -5 in the first pair; chosen -4, rejected 0 in the second."""
    loss = preference(
        scores(-1, -2, -3, -4), batch(), torch.tensor(reference, dtype=torch.float32), terms(**values), kl
    )
    assert loss.num_targets == 2
    return float(loss.total), {name: float(value) for name, value in loss.metrics.items()}


def test_the_preference_loss_is_equation_7() -> None:
    margins = [0.5 * ((-1 + 2) - (-5 + 1)), 0.5 * ((-4 + 1) - (0 + 1))]
    total, metrics = pairs()
    assert total == pytest.approx(sum(math.log(1 + math.exp(-margin)) for margin in margins))
    assert metrics["margin"] == pytest.approx(sum(margins))
    assert metrics["accuracy"] == 1
    assert metrics["chosen_reward"] == pytest.approx(0.5 * (1 - 3))
    assert metrics["rejected_reward"] == pytest.approx(0.5 * (-4 + 1))


def test_smoothing_takes_a_share_of_the_preferences_to_be_wrong() -> None:
    margins = [2.5, -2.0]
    total, _ = pairs(label_smoothing=0.2)
    expected = sum(0.8 * math.log1p(math.exp(-m)) + 0.2 * math.log1p(math.exp(m)) for m in margins)
    assert total == pytest.approx(expected)


def test_a_policy_that_is_the_reference_loses_ln_2_a_pair() -> None:
    total, metrics = pairs(reference=(-1, -5, -4, 0))
    assert total == pytest.approx(2 * math.log(2))
    assert metrics["margin"] == metrics["accuracy"] == 0


def test_beta_scales_the_margin() -> None:
    assert pairs(beta=1.0)[1]["margin"] == pytest.approx(2 * pairs(beta=0.5)[1]["margin"])


@pytest.mark.parametrize("kind", PreferenceLoss)
def test_the_gradient_raises_the_chosen_and_lowers_the_rejected(kind: PreferenceLoss) -> None:
    logps = torch.tensor([-1.0, -2.0, -3.0, -4.0], requires_grad=True)

    def score(given: Batch, with_log_z: bool = False) -> torch.Tensor:
        return torch.zeros(given.labels.shape).masked_scatter(given.labels >= 0, logps)

    preference(score, batch(), torch.zeros(4), terms(loss=kind, beta=0.01)).total.backward()
    assert logps.grad is not None
    assert (logps.grad < 0).tolist() == [True, False, False, True]


def test_metrics_carry_no_gradient() -> None:
    loss = preference(scores(-1, -2, -3, -4), batch(), torch.zeros(4), terms(loss=PreferenceLoss.kto))
    assert not any(value.requires_grad for value in (*loss.metrics.values(), loss.row_nll))


SAME = (-1, -5, -4, 0)
"A reference that says what the policy says."


def test_the_first_loss_of_ipo_is_the_square_of_its_aim() -> None:
    total, _ = pairs(SAME, loss=PreferenceLoss.ipo, beta=0.2)
    assert total == pytest.approx(2 / (4 * 0.2**2))


def test_ipo_is_equation_17() -> None:
    total, metrics = pairs(loss=PreferenceLoss.ipo)
    assert total == pytest.approx((1 + 4 - 1 / (2 * 0.5)) ** 2 + (-3 - 1 - 1 / (2 * 0.5)) ** 2)
    assert metrics["margin"] == pytest.approx(0.5 * (5 - 4))


def test_the_first_loss_of_kto_is_a_half() -> None:
    assert pairs(SAME, loss=PreferenceLoss.kto)[0] == pytest.approx(2 * 0.5)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_kto_is_equation_8_for_every_reply_on_its_own() -> None:
    total, metrics = pairs(kl=0.3, loss=PreferenceLoss.kto)
    chosen = [1 - sigmoid(0.5 * (ratio - 0.3)) for ratio in (1, -3)]
    rejected = [1 - sigmoid(0.5 * (0.3 - ratio)) for ratio in (-4, 1)]
    assert total == pytest.approx(sum(chosen + rejected) / 2)
    assert metrics["kl"] == pytest.approx(2 * 0.3)


def test_by_length_every_reply_counts_per_token() -> None:
    """The rejected reply of the first pair is two tokens long, all others one."""
    total, metrics = pairs(length_normalised=True)
    margins = [0.5 * (1 + 4 / 2), -2.0]
    assert total == pytest.approx(sum(math.log1p(math.exp(-margin)) for margin in margins))
    assert metrics["margin"] == pytest.approx(sum(margins))


def test_by_length_ipo_aims_at_means() -> None:
    assert pairs(length_normalised=True, loss=PreferenceLoss.ipo)[0] == pytest.approx((3 - 1) ** 2 + (-4 - 1) ** 2)


def test_the_way_from_the_reference_is_told_per_token() -> None:
    _, metrics = pairs()
    assert metrics["chosen_kl"] == pytest.approx(1 - 3)
    assert metrics["rejected_kl"] == pytest.approx(-4 / 2 + 1)


@pytest.mark.parametrize("kind", PreferenceLoss)
@pytest.mark.parametrize("by_length", [False, True])
def test_swapping_chosen_and_rejected_flips_the_margin(kind: PreferenceLoss, by_length: bool) -> None:
    forth = preference(
        scores(-1, -2, -3, -4), batch(), torch.tensor([-2.0, -1, -1, -1]), terms(loss=kind, length_normalised=by_length)
    )
    order = torch.tensor([1, 0, 3, 2])
    swapped = replace(batch(), doc_numbers=batch().doc_numbers[order])
    back = preference(
        scores(-1, -2, -3, -4),
        swapped,
        torch.tensor([-2.0, -1, -1, -1])[order],
        terms(loss=kind, length_normalised=by_length),
    )
    assert float(forth.metrics["margin"]) != 0
    assert float(back.metrics["margin"]) == pytest.approx(-float(forth.metrics["margin"]))
    assert float(back.metrics["chosen_reward"]) == pytest.approx(float(forth.metrics["rejected_reward"]))


@pytest.mark.parametrize("kind", PreferenceLoss)
def test_what_has_no_label_has_no_gradient(kind: PreferenceLoss) -> None:
    """Even when a model gives a number where nothing is labelled, the first place of a document is the loss's own to leave out."""
    logps = torch.zeros(2, 6, requires_grad=True)
    is_labelled = batch().labels >= 0

    def score(given: Batch, with_log_z: bool = False) -> torch.Tensor:
        return torch.where(is_labelled, logps, 0.0)

    preference(score, batch(), torch.zeros(4), terms(loss=kind)).total.backward()
    assert logps.grad is not None
    assert ((logps.grad != 0) == is_labelled).all()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"loss": PreferenceLoss.ipo, "label_smoothing": 0.1}, r"label_smoothing=0\.1 has no effect on loss=ipo"),
        ({"loss": PreferenceLoss.kto, "label_smoothing": 0.1}, r"label_smoothing=0\.1 has no effect on loss=kto"),
        ({"loss": PreferenceLoss.kto, "length_normalised": True}, "length_normalised has no effect on loss=kto"),
        ({"optim": OptimConfig(z_loss=1e-4)}, r"optim\.z_loss=0\.0001 has no effect on preferences"),
    ],
)
def test_an_option_without_effect_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DpoConfig(name="t", tokens="tokens/t@v1", model=ModelConfig(path="m"), **values)
