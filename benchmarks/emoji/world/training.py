"""How a model of a small world is trained: float32 masters of what it computes in, an average, a file it is kept in."""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...host import enter_host
from .precision import faster_dtype

KEEP_EVERY, AVERAGING = 100, 0.995
Weights = dict[str, Tensor]


class Masters:
    """float32 weights of a network that computes in another dtype, their optimisers and their running average.

    Args:
        net: the network; its parameters that take gradients are trained.
        optimisers: (float32 weights by name) -> optimisers, each with the highest rate it is to have.
    """

    def __init__(self, net: nn.Module, optimisers: Callable[[Weights], Sequence[torch.optim.Optimizer]]) -> None:
        self.net = net
        self.weights = {name: p.detach().float().clone().requires_grad_() for name, p in self._trained()}
        self.average = {name: w.detach().clone() for name, w in self.weights.items()}
        self.steps = 0
        self.optimisers = optimisers(self.weights)
        self._peaks = [[group["lr"] for group in optimiser.param_groups] for optimiser in self.optimisers]

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.net.named_parameters() if p.requires_grad]

    def step(self, done: float) -> None:
        """Move the weights by the network's gradients. done: share of the training that is over."""
        for name, p in self._trained():
            self.weights[name].grad = None if p.grad is None else p.grad.float()
            p.grad = None
        nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        factor = min(1.0, done / 0.02 + 0.02, 0.02 + (1 - done) / 0.4)
        for optimiser, peaks in zip(self.optimisers, self._peaks, strict=True):
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimiser.step()
        self.steps += 1
        # A young average must not remember the random start.
        keep = min(AVERAGING, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            for name, p in self._trained():
                p.copy_(self.weights[name])
                self.average[name].lerp_(self.weights[name], 1 - keep)

    def state(self) -> dict[str, Any]:
        """All that the steps to come depend on."""
        optimisers = [optimiser.state_dict() for optimiser in self.optimisers]
        return {"weights": self.weights, "average": self.average, "steps": self.steps, "optimisers": optimisers}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        with torch.no_grad():
            for name, p in self._trained():
                self.weights[name].copy_(state["weights"][name])
                self.average[name].copy_(state["average"][name])
                p.copy_(self.weights[name])
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.steps = state["steps"]


def fit(masters: Masters, loss_of: Callable[[], Tensor], steps: int, state: Path | None = None) -> Weights:
    """Averaged float32 weights by parameter name; prints the loss every 20 steps.

    Args:
        masters: of the network, which from here on computes in the faster dtype.
        loss_of: the loss of the network on a new batch.
        steps: of training.
        state: file in which the training is kept every KEEP_EVERY steps; where it exists, it goes on from there.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    from lora_conductor.host.vision import gradients_enabled, overwriting_allowed

    masters.net.to(faster_dtype())
    start, mean, first = time.monotonic(), 0.0, 0
    if state is not None and state.exists():
        kept = torch.load(state, weights_only=True)
        masters.restore(kept["masters"])
        torch.set_rng_state(kept["random"])
        mean, first = kept["mean"], masters.steps
        print(f"  going on from step {first}", flush=True)
    for step in range(first, steps):
        with gradients_enabled(), overwriting_allowed():
            loss = loss_of()
            loss.backward()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}")
        masters.step((step + 1) / steps)
        mean += (loss.item() - mean) * max(0.05, 1 / (step + 1))
        if step % 20 == 19 or step == steps - 1:
            print(f"  step {step + 1}/{steps}: loss {mean:.3f}, {time.monotonic() - start:.0f} s", flush=True)
        if state is not None and (step + 1) % KEEP_EVERY == 0:
            part = state.with_suffix(".part")
            torch.save({"masters": masters.state(), "random": torch.get_rng_state(), "mean": mean}, part)
            os.replace(part, state)
    return masters.average


def command(about: str | None, steps: int, state: str, make: Callable[[Path, Path, int, Path], None]) -> None:
    """A model's training as a command.

    Args:
        about: what it says of itself.
        steps: of training unless it is told otherwise.
        state: name of the file in which the training is kept until it is over.
        make: (folder with the pictures, folder to write to, steps, file for the state).
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True, help="folder with the pictures; models of its own if any")
    parser.add_argument("--out", type=Path, help="folder to write to; default: the world's")
    parser.add_argument("--steps", type=int, default=steps)
    options = parser.parse_args()
    enter_host()
    out = options.out or options.world
    out.mkdir(parents=True, exist_ok=True)
    make(options.world, out, options.steps, out / state)
    (out / state).unlink(missing_ok=True)
