"""Is the implicit reward as sure as it is right? Probabilities of preferences against how often they hold."""

import math

import torch
from torch import Tensor

MOST_BINS = 10
PAIRS_A_BIN = 10
"""So many pairs a bin, on average: with fewer the error of an accuracy passes for one of calibration."""


def calibration_error(margins: Tensor) -> float:
    """Return the expected calibration error (ECE) of the preferences that reward margins imply, in [0, 1].

    By Bradley and Terry a margin of `m` nats says that the chosen response is the better one with the probability
    `sigmoid(m)`. So a pair is a forecast of confidence `sigmoid(|m|)`, in [1/2, 1], that is right if `m > 0`. Forecasts
    are put in 10 bins of equal width, fewer where there are less than 10 pairs for each; the error is the mean
    over pairs of `|accuracy - mean confidence|` of their bin (Guo et al. 2017, arXiv 1706.04599, Eq. 3). It is above 0
    by chance alone where pairs are few.

    It fits losses whose rewards are Bradley-Terry's (DPO and its relatives); of others it tells how a sigmoid would do.

    Args:
        margins: `reward(chosen) - reward(rejected)` of each pair, `(pairs,)`.

    Examples:
        >>> always_sure = torch.tensor([9.0, 9.0, 9.0, -9.0])  # and right three times in four
        >>> round(calibration_error(always_sure), 2)
        0.25
    """
    from torchmetrics.functional.classification import binary_calibration_error

    bins = min(max(len(margins) // PAIRS_A_BIN, 1), MOST_BINS)
    # each pair in both orders: a tie is then right half of the time, and torchmetrics' bins go from 0 to 1
    logits = torch.cat([margins, -margins]).double()
    is_chosen = torch.arange(len(logits), device=logits.device) < len(margins)
    return binary_calibration_error(logits.sigmoid(), is_chosen.long(), n_bins=2 * bins).item()


def temperature_of(margins: Tensor) -> float:
    """Return the temperature that fits the labels best: it maximises the likelihood of `sigmoid(margin / temperature)`.

    Temperature scaling of Guo et al. 2017 (arXiv 1706.04599, Sec. 4.2). It is looked for between 1/100 and 100 times
    the margins' mean size: the least where all margins are right, the greatest where margins say nothing.

    Args:
        margins: `reward(chosen) - reward(rejected)` of each pair, `(pairs,)`.

    Examples:
        >>> right_three_times_in_four = torch.tensor([2.0, 2.0, 2.0, -2.0])  # sigmoid(2 / T) = 3/4 at T = 2 / log(3)
        >>> round(temperature_of(right_three_times_in_four), 3)
        1.82
    """
    from scipy.optimize import minimize_scalar

    size = margins.double().abs().mean().item() or 1.0
    scaled = margins.double() / size

    def loss(log_temperature: float) -> float:
        return -torch.nn.functional.logsigmoid(scaled / math.exp(log_temperature)).mean().item()

    found = minimize_scalar(loss, bounds=(-math.log(100), math.log(100)), method="bounded", options={"xatol": 1e-6})
    return size * math.exp(found.x)
