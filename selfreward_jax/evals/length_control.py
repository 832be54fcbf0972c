"""What a win rate would be if both sides' answers were equally long (Dubois et al. 2024, length-controlled AlpacaEval).

The chance that A wins on a prompt is logistic in a term of the models and one of the length difference:

    P(A wins) = sigmoid(quality + slope * tanh(d / s)),   d = length of A's answer - length of B's, s = std of d,

and the length-controlled win rate is this at d = 0, sigmoid(quality). AlpacaEval has a third term, the difficulty of
each instruction, which it fits over the many models of its leaderboard; two models alone don't determine it, so here
there is none. Swapping A and B turns the sign of everything and so gives 1 minus the rate, exactly.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from selfreward_jax.evals.statistics import Interval, bootstrap

# Of slope**2 / 2, in nats: one prompt tells more. It only keeps the slope finite where length separates all outcomes.
L2 = 0.1


def length_term(length_a: Sequence[int], length_b: Sequence[int]) -> np.ndarray:
    """tanh of the length differences in units of their standard deviation [N]; 0 where none differ."""
    d = np.asarray(length_a, np.float64) - np.asarray(length_b, np.float64)
    spread = d.std() if len(d) else 0.0
    if spread == 0.0:  # the same difference everywhere can't be told from quality
        return np.zeros_like(d)
    return np.tanh(d / spread)


def negative_log_likelihood(
    theta: np.ndarray, outcomes: np.ndarray, term: np.ndarray, l2: float = L2
) -> tuple[float, np.ndarray]:
    """Of the model above with the penalty on the slope, in nats, and its gradient.

    Args:
      theta: quality and slope.
      outcomes: of A, [N]: 1 won, 0 lost, 0.5 tie.
      term: from `length_term`, [N].
    """
    quality, slope = theta
    logits = quality + slope * term
    loss = np.logaddexp(0.0, logits).sum() - (outcomes * logits).sum() + 0.5 * l2 * slope**2
    error = expit(logits) - outcomes
    return float(loss), np.array([error.sum(), (error * term).sum() + l2 * slope])


def _hessian(theta: np.ndarray, outcomes: np.ndarray, term: np.ndarray, l2: float = L2) -> np.ndarray:
    p = expit(theta[0] + theta[1] * term)
    w = p * (1 - p)
    cross = (w * term).sum()
    return np.array([[w.sum(), cross], [cross, (w * term**2).sum() + l2]])


def fit(outcomes: np.ndarray, term: np.ndarray) -> tuple[float, float]:
    """Quality and slope of greatest likelihood; quality is infinite where all outcomes are wins, or all losses."""
    mean = float(outcomes.mean())
    if mean in (0.0, 1.0):
        return (math.inf if mean else -math.inf), 0.0
    start = np.array([math.log(mean / (1 - mean)), 0.0])
    if not term.any():
        return float(start[0]), 0.0
    made = minimize(
        negative_log_likelihood,
        start,
        args=(outcomes, term),
        jac=True,
        hess=_hessian,
        method="trust-exact",
        options={"gtol": 1e-6},
    )
    return float(made.x[0]), float(made.x[1])


def length_controlled(
    outcomes: Sequence[float], length_a: Sequence[int], length_b: Sequence[int], resamples: int = 1000
) -> Interval:
    """Win rate of A at equal length, with its bootstrap interval over prompts; undefined for no prompt."""
    y, term = np.asarray(outcomes, np.float64), length_term(length_a, length_b)
    return bootstrap(len(y), lambda draw: float(expit(fit(y[draw], term[draw])[0])), resamples=resamples)
