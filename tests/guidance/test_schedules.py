import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lora_conductor.guidance.schedules import GuidanceWindow, step_of_sigma

SIGMAS = [14.6, 7.0, 3.0, 1.0, 0.3, 0.0]


@pytest.mark.parametrize(
    ("sigma", "step"),
    [(14.6, 0), (20.0, 0), (7.0, 1), (6.99999, 1), (7.00001, 1), (5.0, 1), (1.0, 3), (0.1, 4), (0.0, 4)],
)
def test_step_of_sigma(sigma, step):
    assert step_of_sigma(sigma, SIGMAS) == step


@pytest.mark.parametrize(
    ("start", "end", "every", "steps", "guided"),
    [
        (0.2, 0.8, 1, 10, [2, 3, 4, 5, 6, 7]),
        (0.2, 0.8, 2, 10, [2, 4, 6]),
        (0.0, 1.0, 1, 4, [0, 1, 2, 3]),
        (0.2, 0.8, 1, 1, [0]),
        (0.5, 0.55, 1, 8, [4]),
        (0.95, 1.0, 1, 4, [3]),
        (0.4, 0.8, 6, 20, [8, 14]),
        (0.4, 0.8, 6, 4, [2]),
        (0.4, 0.8, 6, 2, [0]),
        (0.9, 0.95, 1, 8, [6]),
    ],
)
def test_window(start, end, every, steps, guided):
    window = GuidanceWindow(start, end, every)
    assert [step for step in range(steps) if window.is_active(step, steps)] == guided


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.integers(1, 8), st.integers(1, 60))
def test_a_window_holds_a_step_and_spares_the_last(start, end, every, steps):
    assume(start < end)
    window = GuidanceWindow(start, end, every)
    guided = [step for step in range(steps) if window.is_active(step, steps)]
    assert guided
    assert end == 1.0 or steps == 1 or steps - 1 not in guided


@pytest.mark.parametrize("arguments", [(0.8, 0.2), (0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (0.0, 1.0, 0)])
def test_impossible_windows_are_refused(arguments):
    with pytest.raises(ValueError, match="guid"):
        GuidanceWindow(*arguments)
