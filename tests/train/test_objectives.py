"""What is minimised, against the equations, with log-probabilities made by hand."""

import math

import numpy as np
import pytest
import torch

from lisan.model.score import Batch, collate
from lisan.train.objectives import Score, causal_lm, count_labels, count_pairs, preference


def batch() -> Batch:
    """Two rows of two documents each: lengths 2 and 3, and 3 and 1; the last token of each row is padding."""
    ids = np.ones((2, 6), np.int32)
    labels = np.array([[-100, 1, -100, 1, 1, -100], [-100, -100, 1, -100, -100, -100]], np.int32)
    return collate(ids, labels, [[2, 3], [3, 1]])


def scores(*values: float) -> Score:
    """Return a model that gives the labelled tokens these log-probabilities, in order."""

    def score(given: Batch) -> torch.Tensor:
        logps = torch.zeros(given.labels.shape)
        logps[given.labels >= 0] = torch.tensor(values, dtype=torch.float32)
        return logps

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


def pairs(
    beta: float = 0.5, smoothing: float = 0.0, reference: tuple[float, ...] = (-2, -1, -1, -1)
) -> tuple[float, dict[str, float]]:
    """Score chosen -1, rejected -5 in the first pair; chosen -4, rejected 0 in the second."""
    loss = preference(scores(-1, -2, -3, -4), batch(), torch.tensor(reference, dtype=torch.float32), beta, smoothing)
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
    total, _ = pairs(smoothing=0.2)
    expected = sum(0.8 * math.log1p(math.exp(-m)) + 0.2 * math.log1p(math.exp(m)) for m in margins)
    assert total == pytest.approx(expected)


def test_a_policy_that_is_the_reference_loses_ln_2_a_pair() -> None:
    total, metrics = pairs(reference=(-1, -5, -4, 0))
    assert total == pytest.approx(2 * math.log(2))
    assert metrics["margin"] == metrics["accuracy"] == 0


def test_beta_scales_the_margin() -> None:
    assert pairs(beta=1.0)[1]["margin"] == pytest.approx(2 * pairs(beta=0.5)[1]["margin"])


def test_the_gradient_raises_the_chosen_and_lowers_the_rejected() -> None:
    logps = torch.tensor([-1.0, -2.0, -3.0, -4.0], requires_grad=True)

    def score(given: Batch) -> torch.Tensor:
        return torch.zeros(given.labels.shape).masked_scatter(given.labels >= 0, logps)

    preference(score, batch(), torch.zeros(4), 0.1).total.backward()
    assert logps.grad is not None
    assert (logps.grad < 0).tolist() == [True, False, False, True]


def test_metrics_carry_no_gradient() -> None:
    loss = preference(scores(-1, -2, -3, -4), batch(), torch.zeros(4), 0.1)
    assert not any(value.requires_grad for value in (*loss.metrics.values(), loss.row_nll))
