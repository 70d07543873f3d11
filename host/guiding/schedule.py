"""The schedule of the whole run that a call of sampling is a part of: stages, or steps, may be calls of their own.

Guidance acts at positions in the whole run. A call knows its own sigmas only; the others are those of the run around
it, else of the schedule of core's that it is a piece of, else they follow from the noise level.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import comfy.samplers
import torch

from ...guidance.schedules import estimated_schedule, is_part_of

_MOST = 150  # steps of a schedule that is looked for
_REFERENCE = 100  # steps of the schedules that a call's length is measured by
_SLACK = 1e-3  # relative, at the ends of the model's noise levels


def whole_schedule(
    sigmas: Sequence[float],
    model_sampling: Any,
    sampler: Any,
    noise: torch.Tensor,
    around: torch.Tensor | None = None,
) -> list[float]:
    """The sigmas of the whole run that a call samples a part of; its own where it is a run of its own.

    A call is a run of its own if it ends without noise and either starts at the model's full noise level or is given
    fresh noise, as img2img is: whether that was noised by somebody else's plan cannot be known.

    Args:
        sigmas: of the call, steps + 1.
        model_sampling: core's, of the model that samples.
        sampler: core's SAMPLER: with some, KSampler leaves a step of its schedules out.
        noise: that the call adds to its latent; zeros for none.
        around: the sigmas of the sampling that the call is made in, if that is known.
    """
    own = list(sigmas)
    if around is not None and _is_inside(own, outer := around.tolist()):
        own = outer
    if len(own) < 2 or any(here <= following for here, following in zip(own, own[1:], strict=False)):
        return own
    ends = own[-1] <= float(model_sampling.sigma_min) * (1 + _SLACK)
    begins = own[0] >= float(model_sampling.sigma_max) * (1 - _SLACK)
    if ends and (begins or bool(noise.any())):
        return own
    found = [whole for whole in _core_schedules(own, model_sampling, sampler) if is_part_of(own, whole)]
    if found:
        return max(found, key=_roundness)
    start, end = (_percent(sigma, model_sampling) for sigma in (own[0], own[-1]))
    return estimated_schedule(own, start, end, lambda percent: _sigma(percent, model_sampling))


def _is_inside(sigmas: Sequence[float], outer: Sequence[float]) -> bool:
    """Whether a call covers a part of the noise levels of the sampling that it is made in, and no more."""
    if len(sigmas) < 2 or len(outer) < 2:
        return False
    slack = 1e-5 * outer[0]
    within = sigmas[0] <= outer[0] + slack and sigmas[-1] >= outer[-1] - slack
    return within and (sigmas[0] < outer[0] - slack or sigmas[-1] > outer[-1] + slack)


def _percent(sigma: float, model_sampling: Any) -> float:
    """Where a noise level lies in the model's full schedule: the inverse of core's `percent_to_sigma`."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _sigma(middle, model_sampling) > sigma else (low, middle)
    return (low + high) / 2


def _sigma(percent: float, model_sampling: Any) -> float:
    # Core calls everything before the start endless noise.
    return min(float(model_sampling.percent_to_sigma(percent)), float(model_sampling.sigma_max))


def _core_schedules(sigmas: Sequence[float], model_sampling: Any, sampler: Any) -> Iterator[list[float]]:
    """Those of core's schedules that have steps about as long as these where these are."""
    leaves_out = _leaves_out_a_step(sampler)

    def made(name: str, steps: int) -> list[float]:
        try:
            whole = comfy.samplers.calculate_sigmas(model_sampling, name, steps + leaves_out).tolist()
        except (ArithmeticError, IndexError, ValueError):
            return []  # some are not made for one step
        return [*whole[:-2], whole[-1]] if leaves_out else whole

    for name in comfy.samplers.SCHEDULER_NAMES:
        reference = made(name, _REFERENCE)
        length = _place(sigmas[-1], reference) - _place(sigmas[0], reference)
        about = round((len(sigmas) - 1) / max(length, 1e-3))
        slack = 2 + about // 20
        for steps in range(max(about - slack, 1), about + slack + 1) if about <= _MOST else ():
            yield made(name, steps)


def _place(sigma: float, schedule: Sequence[float]) -> float:
    """Where in a descending schedule a sigma is, 0 = at its start, 1 = at its end."""
    after = next((index for index, other in enumerate(schedule) if other <= sigma), len(schedule) - 1)
    if after == 0:
        return 0.0
    above, below = schedule[after - 1 : after + 1]
    return (after - (sigma - below) / (above - below)) / (len(schedule) - 1)


def _roundness(schedule: Sequence[float]) -> int:
    """Of several schedules with the same piece, people have chosen the one with a round number of steps."""
    steps = len(schedule) - 1
    return sum(steps % divisor == 0 for divisor in (2, 4, 5, 10))


def _leaves_out_a_step(sampler: Any) -> bool:
    """Whether KSampler makes a schedule of one step more for it, and drops the last but one sigma."""
    function = getattr(sampler, "sampler_function", None)
    names = comfy.samplers.KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS
    return any(function is comfy.samplers.sampler_object(name).sampler_function for name in names)
