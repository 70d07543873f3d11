"""What fusing adds to a sampling run over LoRAs that core merged: exact, and the same on every machine.

A step's share is the difference between runs of three and of two steps, so that whatever a user gets is in it: the map
on the page, the record, the plan. What loading and patching ask for is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .launches import Launches, Waits
from .models import Shape, lora_of, model_of, sample

FEW, MANY = 2, 3  # steps
RANK = 16


@dataclass(frozen=True)
class Cost:
    """Of a variant, over core's merge.

    Attributes:
        launches: a routed layer and model call.
        bytes: a step.
        waits: of the host for the device, within a model call, a step.
        reads: between model calls, a step: copies to the host, which nobody waits for.
        kinds: launches a step by operation.
    """

    launches: float
    bytes: int
    waits: float
    reads: float
    kinds: dict[str, float] = field(repr=False)


@dataclass(frozen=True)
class _Counted:
    """What the last steps of a run asked for."""

    launches: Counter[str]
    bytes: int
    waits: int
    reads: int


class Variants:
    """A model with LoRAs on it: merged by core, or fused by a policy.

    Args:
        shape: of the model.
        dtype: that it computes in.
        folder: for the files.
        cfg: scale of the guidance; both prompts are one call.
        subject, style: ranks of each role's LoRAs.
        batch: of pictures.
    """

    def __init__(
        self,
        shape: Shape,
        dtype: Any,
        folder: Path,
        *,
        cfg: float = 5.0,
        subject: Sequence[int] = (RANK,),
        style: Sequence[int] = (RANK,),
        batch: int = 1,
    ) -> None:
        import comfy.sd
        import comfy.utils

        from lora_conductor.host.fusing import attachment_of, fused

        self.shape, self.cfg, self.batch, merged = shape, cfg, batch, model_of(shape, dtype)
        ranks = [*subject, *style]
        files = [lora_of(shape, merged, folder / f"{i}.safetensors", rank, i) for i, rank in enumerate(ranks)]
        loras = [(file, 0.5) for file in files]
        self.fused = fused(merged, loras[: len(subject)], loras[len(subject) :])
        self.layers = attachment_of(self.fused).spec.shared_layers
        for file in files:
            merged, _ = comfy.sd.load_lora_for_models(merged, None, comfy.utils.load_torch_file(str(file)), 0.5, 0)
        self._merged = self._counted(merged)

    def cost(self, policy: Any, refinement: Any = None) -> Cost:
        """Of a policy with settings."""
        from lora_conductor.host.fusing import set_policy

        return self._over_merged(set_policy(self.fused, policy, refinement))

    def floor(self) -> Cost:
        """Of adding both LoRAs while sampling, as they are, with nothing measured, decided or weighted."""
        from lora_conductor.fusion.policies import Sum
        from lora_conductor.host.fusing import set_policy

        return self._over_merged(set_policy(self.fused, Sum(), always_live=True))

    def cost_of_replay(self, policy: Any) -> Cost:
        """Of a plan that was made with a policy."""
        from lora_conductor.host.fusing import plan_of_latent, set_policy
        from lora_conductor.host.fusing.plans import replaying

        routed = set_policy(self.fused, policy)
        plan = plan_of_latent(routed, self._sample(routed, MANY))
        return self._over_merged(replaying(self.fused, plan))

    def _sample(self, model: Any, steps: int) -> Any:
        return sample(self.shape, model, steps, self.cfg, self.batch)

    def _over_merged(self, model: Any) -> Cost:
        from lora_conductor.host.fusing import attachment_of

        live = attachment_of(model).live
        if live is not None:
            live.shown_on = "1"
        mine, merged = self._counted(model), self._merged
        more = mine.launches.copy()
        more.subtract(merged.launches)
        steps = MANY - FEW
        return Cost(
            more.total() / steps / self.layers,
            (mine.bytes - merged.bytes) // steps,
            (mine.waits - merged.waits) / steps,
            (mine.reads - merged.reads) / steps,
            {name: count / steps for name, count in more.most_common() if count},
        )

    def _counted(self, model: Any) -> _Counted:
        self._sample(model, 1)  # whatever is made once
        few, waits_few = self._run(model, FEW)
        many, waits_many = self._run(model, MANY)
        launches = many.counts.copy()
        launches.subtract(few.counts)
        within, beside = (
            getattr(waits_many, kind).total() - getattr(waits_few, kind).total() for kind in ("within", "beside")
        )
        return _Counted(launches, many.bytes - few.bytes, within, beside)

    def _run(self, model: Any, steps: int) -> tuple[Launches, Waits]:
        """Of a whole run."""
        with _a_page(), Launches() as launches, Waits() as waits, _host_work(launches, waits):
            model = model.clone()
            model.set_model_unet_function_wrapper(waits.model_call)
            self._sample(model, steps)
        return launches, waits


@contextmanager
def _host_work(*modes: Launches | Waits) -> Iterator[None]:
    """Leave out what no device is asked for: columns of the map, record and plan, from copies that have arrived, and a
    planned call's weights before they are sent to the device."""
    from lora_conductor.fusion.records import ReplayedCall
    from lora_conductor.host.fusing import run
    from lora_conductor.host.maps import live
    from lora_conductor.host.maps.columns import Columns

    places = [
        (Columns, "take_arrived"),
        (live, "_encoded"),
        (ReplayedCall, "table"),
        (run, "record_of"),
        (run, "plan_of"),
    ]
    before = [getattr(owner, name) for owner, name in places]

    def on_host(function: Any) -> Any:
        @wraps(function)
        def uncounted(*args: Any, **kwargs: Any) -> Any:
            for mode in modes:
                mode.on_host = True
            try:
                return function(*args, **kwargs)
            finally:
                for mode in modes:
                    mode.on_host = False

        return uncounted

    for (owner, name), function in zip(places, before, strict=True):
        setattr(owner, name, on_host(function))
    try:
        yield
    finally:
        for (owner, name), function in zip(places, before, strict=True):
            setattr(owner, name, function)


@contextmanager
def _a_page() -> Iterator[None]:
    """A page that looks at the map and is told every step."""
    from lora_conductor.host.core import told
    from lora_conductor.host.maps import live

    loop = SimpleNamespace(call_soon_threadsafe=lambda *_: None)
    server = SimpleNamespace(loop=loop, sockets={"page": object()})
    names = {
        "page_of_prompt": lambda: (server, server.sockets["page"], "page"),
        "ids_of_prompt": lambda _: {"prompt": "1", "workflow": "1"},
        "send": lambda *_: None,
    }
    before, rate = {name: getattr(told, name) for name in names}, live.RATE
    vars(told).update(names)
    live.RATE = float("inf")
    try:
        yield
    finally:
        vars(told).update(before)
        live.RATE = rate
