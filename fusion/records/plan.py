"""Plans: a run's decisions, kept so that they can be made again without measuring anything.

As JSON a plan is one object: ``format`` and ``version``; ``loras`` (name, role, strength, sha256 of the file);
``policy`` and ``refinement`` with their settings; ``sigmas``; ``layers``, in the order they run; ``calls``, one a
condition, step and evaluation, with ``weights``; and ``frozen``, where the run was: per layer the weights of its rest.

``weights`` are ``[subject, style]`` of every layer. In version 2 they are packed (:mod:`.packed`), by one of the plan's
``layouts``. In version 1, which is read as ever, each is a number for all samples or ``[sample][token][head]``, or null
where the layer did not run; numbers have nine digits, which is what a float32 needs to be read back as it was.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..policies import StepContext
from ..roles import ROLES
from . import checks as check
from .checks import PlanError, shown
from .decisions import CallDecisions
from .packed import Layout, Packed, Pair, pack, read_layout, read_packed
from .pairs import Pairs, Place, pairs_of

FORMAT, VERSION, READ = "lora-conductor-plan", 2, (1, 2)
MOST_BYTES, MOST_IN_MEMORY = 2**30, 2**32
MOST_LORAS, MOST_LAYERS, MOST_CALLS, MOST_STEPS = 1000, 100_000, 1_000_000, 100_000
MOST_LAYOUTS, MOST_ROWS = 1000, 10**7  # rows: of all layouts
MOST_OF_A_WEIGHT = 1e4  # policies give from 0 to a few


@dataclass(frozen=True)
class PlannedCall:
    """The weights ``(subject, style)`` of all layers for one condition, at one evaluation of one step.

    None stands for a layer that did not run in that call.
    """

    step: int
    condition: str
    evaluation: int
    weights: Sequence[Pair | None] = field(repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.weights, Pairs):  # which are made when they are asked for
            object.__setattr__(self, "weights", pack(self.weights))

    @cached_property
    def packed(self) -> Packed:
        """Its weights, packed."""
        return pack(self.weights)


@dataclass(frozen=True)
class Plan:
    """See the module.

    Attributes:
        loras: name, role, strength and content hash of every LoRA.
        policy, refinement: settings of what decided.
        sigmas: noise levels of the run, ``steps + 1`` of them.
        layers: decided segments in the order they run; one that runs n times a call is there n times.
        calls: what was decided. Empty for policies that decide nothing while sampling.
        frozen: of a run that was frozen, the weights of its rest by layer.
    """

    loras: tuple[dict[str, Any], ...]
    policy: dict[str, Any]
    refinement: dict[str, Any]
    sigmas: tuple[float, ...]
    layers: tuple[str, ...]
    calls: tuple[PlannedCall, ...] = field(repr=False)
    frozen: tuple[tuple[float, float], ...] | None = field(default=None, repr=False)

    @property
    def steps(self) -> int:
        return max(1, len(self.sigmas) - 1)

    @cached_property
    def digest(self) -> str:
        """Hash of the whole content."""
        return hashlib.sha256(self.dumps().encode()).hexdigest()

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of each layer; of its last run, where it runs several times a call."""
        return {name: row for row, name in enumerate(self.layers)}

    @cached_property
    def heads(self) -> dict[str, set[int]]:
        """By layer, how many numbers its weights have for the heads of a token."""
        found: dict[str, set[int]] = {layer: set() for layer in self.layers}
        for layout in self._layouts:
            for layer, row in zip(self.layers, layout.rows, strict=True):
                found[layer].update(shape[-1] for shape in row or () if shape)
        return found

    @cached_property
    def _layouts(self) -> dict[Layout, int]:
        """Of the calls, numbered."""
        layouts = dict.fromkeys(call.packed.layout for call in self.calls)
        return {layout: i for i, layout in enumerate(layouts)}

    @cached_property
    def unsound(self) -> str | None:
        """Where it holds what no file may hold, as after a run that diverged; None for nowhere."""
        for i, call in enumerate(self.calls):
            if call.packed.within(MOST_OF_A_WEIGHT):
                continue
            j = next(j for j, pair in enumerate(call.weights) if not pack([pair]).within(MOST_OF_A_WEIGHT))
            return f"calls[{i}].weights[{j}] holds NaN, or a number beyond {MOST_OF_A_WEIGHT:g}"
        return None

    def dumps(self) -> str:
        """As JSON.

        Raises:
            PlanError: it holds NaN or the like.
        """
        if self.unsound is not None:
            raise PlanError(self.unsound)
        return json.dumps(
            {
                "format": FORMAT,
                "version": VERSION,
                "loras": list(self.loras),
                "policy": self.policy,
                "refinement": self.refinement,
                "sigmas": list(self.sigmas),
                "roles": list(ROLES),
                "layers": list(self.layers),
                "layouts": [layout.plain() for layout in self._layouts],
                "calls": [
                    {
                        "step": call.step,
                        "condition": call.condition,
                        "evaluation": call.evaluation,
                        "weights": call.packed.plain(self._layouts[call.packed.layout]),
                    }
                    for call in self.calls
                ],
                "frozen": None if self.frozen is None else [list(pair) for pair in self.frozen],
            },
            separators=(",", ":"),
        )

    @cached_property
    def _by_place(self) -> dict[tuple[int, str], list[PlannedCall]]:
        places: dict[tuple[int, str], list[PlannedCall]] = {}
        for call in self.calls:
            places.setdefault((call.step, call.condition), []).append(call)
        return places

    def _step_at(self, context: StepContext) -> int:
        """The step that began nearest to a noise level: parts of a run, and other runs, play what belongs there."""
        levels = self.sigmas[:-1]
        if not levels or min(*levels, context.sigma) <= 0:
            return min(context.step, self.steps - 1)
        if context.step < len(levels) and levels[context.step] == context.sigma:
            return context.step
        return min(range(len(levels)), key=lambda i: abs(math.log(levels[i] / context.sigma)))

    def planned(self, context: StepContext, condition: str, evaluation: int) -> PlannedCall:
        """What was decided there, or at the nearest place: a plan also fits other steps, samplers and prompts."""
        step = self._step_at(context)
        group, _, _ = condition.partition(".")
        for place in ((step, condition), (step, f"{group}.0"), (step, "positive.0")):
            if place in self._by_place:
                calls = self._by_place[place]
                return calls[min(evaluation, len(calls) - 1)]
        return min(self.calls, key=lambda call: abs(call.step - step))


def loads(text: str | bytes) -> Plan:
    """A plan from its JSON.

    Raises:
        PlanError: the text is no plan, or one of a later version; it says which value is wrong, by its path.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    # What Python makes of it in memory: a list of one number takes twenty times its six characters.
    size = 3 * len(data) + 72 * (data.count(b"[") + data.count(b"{")) + 32 * data.count(b",")
    if len(data) > MOST_BYTES or size > MOST_IN_MEMORY:
        raise PlanError(f"it is too large: {len(data) / 1e6:.0f} MB, which would take {size / 1e6:.0f} MB of memory")
    try:
        read = json.loads(data.decode("utf-8"), object_hook=_compact)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"it cannot be read: it is no JSON ({type(error).__name__}: {shown(str(error))})") from None
    if not isinstance(read, dict) or read.get("format") != FORMAT:
        raise PlanError("it is no routing plan")
    version = check.entry(read, "version")
    if isinstance(version, bool) or version not in READ:
        raise PlanError(f"it has version {shown(version)}, and this release reads up to version {VERSION}")
    roles = read.get("roles", list(ROLES))
    if roles != list(ROLES):
        raise PlanError(f"roles must be {', '.join(ROLES)}, not {shown(roles)}")
    layers = _layers_of(check.entry(read, "layers"))
    calls = check.items(check.entry(read, "calls"), "calls", MOST_CALLS)
    if calls and not layers:
        raise PlanError("layers must name those that were decided, and is empty")
    most = min(MOST_LAYOUTS, MOST_ROWS // max(1, len(layers)))
    layouts = [
        read_layout(layout, f"layouts[{i}]", len(layers))
        for i, layout in enumerate(check.items(read.get("layouts", []), "layouts", most))
    ]
    plan = Plan(
        tuple(_lora(lora, f"loras[{i}]") for i, lora in enumerate(check.items(read.get("loras"), "loras", MOST_LORAS))),
        _settings(check.entry(read, "policy"), "policy"),
        _settings(check.entry(read, "refinement"), "refinement"),
        tuple(check.number(s, f"sigmas[{i}]") for i, s in enumerate(_sigmas(check.entry(read, "sigmas")))),
        layers,
        tuple(_call(call, f"calls[{i}]", len(layers), layouts) for i, call in enumerate(calls)),
        _frozen(read.get("frozen"), len(layers)),
    )
    # What the properties would find, for a file of ours; they look at everything once more.
    plan.__dict__.update(digest=hashlib.sha256(data).hexdigest(), unsound=None)
    return plan


def _sigmas(value: Any) -> list[Any]:
    return check.items(value, "sigmas", MOST_STEPS + 1)


def _layers_of(value: Any) -> tuple[str, ...]:
    return tuple(check.text(v, f"layers[{i}]") for i, v in enumerate(check.items(value, "layers", MOST_LAYERS)))


def _lora(value: Any, where: str) -> dict[str, Any]:
    lora = check.an_object(value, where)
    check.plain(lora, where)
    for key in ("name", "sha256"):
        check.text(check.entry(lora, key, where), f"{where}.{key}")
    check.text(check.entry(lora, "role", where), f"{where}.role", ROLES)
    check.number(check.entry(lora, "strength", where), f"{where}.strength")
    return lora


def _settings(value: Any, where: str) -> dict[str, Any]:
    settings = check.an_object(value, where)
    check.plain(settings, where)
    return settings


def _frozen(value: Any, layers: int) -> tuple[tuple[float, float], ...] | None:
    if value is None:
        return None
    pairs = []
    for i, pair in enumerate(check.items(value, "frozen", layers, layers)):
        subject, style = check.items(pair, f"frozen[{i}]", 2, 2)
        pairs.append((_a_number(subject, f"frozen[{i}][0]"), _a_number(style, f"frozen[{i}][1]")))
    return tuple(pairs)


def _a_number(value: Any, where: str) -> float:
    return check.number(value, where, -MOST_OF_A_WEIGHT, MOST_OF_A_WEIGHT)


def _compact(read: dict[str, Any]) -> Any:
    """A call as tensors while the rest of the JSON is still read: as lists its weights would fill the memory."""
    if read.keys() >= {"step", "condition", "evaluation", "weights"} and isinstance(read["weights"], list):
        try:
            return _call(read, "", None)
        except PlanError:
            pass  # it is told with its place once that is known
    return read


def _call(value: Any, where: str, layers: int | None, layouts: Sequence[Layout] = ()) -> PlannedCall:
    if not isinstance(value, PlannedCall):
        call = check.an_object(value, where)
        given = check.entry(call, "weights", where)
        if isinstance(given, dict):
            weights: Sequence[Pair | None] = read_packed(given, layouts, MOST_OF_A_WEIGHT, f"{where}.weights")
        else:
            weights = _weights(check.items(given, f"{where}.weights", MOST_LAYERS), f"{where}.weights")
        value = PlannedCall(
            check.whole(check.entry(call, "step", where), f"{where}.step", 0, MOST_STEPS),
            check.text(check.entry(call, "condition", where), f"{where}.condition"),
            check.whole(check.entry(call, "evaluation", where), f"{where}.evaluation"),
            weights,
        )
    if layers is not None and len(value.weights) != layers:
        raise PlanError(f"{where}.weights must name every layer: {layers}, not {len(value.weights)}")
    return value


def _weights(pairs: list[Any], where: str) -> tuple[Pair | None, ...]:
    """The weights of a call, those of many numbers as views of one tensor."""
    found: list[Any] = []
    flat: list[Any] = []
    shapes: dict[tuple[int, int], tuple[int, int, int]] = {}
    for i, pair in enumerate(pairs):
        if pair is None:
            found.append(None)
            continue
        both: list[Any] = []
        for j, weight in enumerate(check.items(pair, f"{where}[{i}]", 2, 2)):
            if isinstance(weight, list):
                shapes[i, j] = _shape(weight, f"{where}[{i}][{j}]")
                for rows in weight:
                    for row in rows:
                        flat += row
                both.append(None)
            else:
                both.append(_a_number(weight, f"{where}[{i}][{j}]"))
        found.append(both)
    views = iter(_tensors(flat, shapes, where) if flat else ())
    return tuple(
        None if pair is None else tuple(next(views) if w is None else w for w in pair)  # type: ignore[misc]
        for pair in found
    )


def _shape(weight: list[Any], where: str) -> tuple[int, int, int]:
    """Shape of ``[sample][token][head]``; numbers are looked at later, all at once."""
    rows = [row for sample in weight if isinstance(sample, list) for row in sample if isinstance(row, list)]
    tokens = {len(sample) if isinstance(sample, list) else 0 for sample in weight}
    heads = {len(row) for row in rows}
    if len(tokens) != 1 or len(heads) != 1 or 0 in tokens | heads or len(rows) != len(weight) * max(tokens):
        raise PlanError(f"{where} is neither a number nor numbers by [sample][token][head]")
    return len(weight), max(tokens), max(heads)


def _tensors(flat: list[Any], shapes: dict[tuple[int, int], tuple[int, int, int]], where: str) -> list[Tensor]:
    sizes = [math.prod(shape) for shape in shapes.values()]
    if set(map(type, flat)) != {float} or not _bounded(torch.tensor(flat, dtype=torch.float64)):
        rest = iter(flat)
        flat = [
            _a_number(value, f"{where}[{i}][{j}]")
            for (i, j), size in zip(shapes, sizes, strict=True)
            for value in islice(rest, size)
        ]
    values = torch.tensor(flat, dtype=torch.float32)
    if len(set(shapes.values())) == 1:  # as nearly always: one step instead of thousands
        return list(values.reshape(len(shapes), *next(iter(shapes.values()))).unbind())
    return [part.reshape(shape) for part, shape in zip(values.split(sizes), shapes.values(), strict=True)]


def _bounded(values: Tensor) -> bool:
    return bool((values.abs() <= MOST_OF_A_WEIGHT).all())  # NaN is not


def plan_of(
    calls: Sequence[CallDecisions],
    sigmas: tuple[float, ...],
    header: dict[str, Any],
    frozen: Mapping[str, tuple[float, float]] | None = None,
) -> Plan:
    """What was decided in calls that were read back, for every sample apart; if it was frozen, at what weights."""
    layers = _layers(calls)
    planned = [
        PlannedCall(call.step, key, evaluation, weights)
        for call, places in zip(calls, _places_of_all(calls), strict=True)
        for key, evaluation, weights in zip(
            call.batch.keys, call.evaluations, pairs_of(call, places, layers), strict=True
        )
    ]
    names = tuple(name for name, _ in layers)
    still = None if frozen is None else tuple(frozen[name] for name in names)
    return Plan(**header, sigmas=sigmas, layers=names, calls=tuple(planned), frozen=still)


def _places(names: Iterable[str]) -> tuple[Place, ...]:
    """Of each decision of a call: its segment's name, and how often that had run in the call before."""
    seen: dict[str, int] = {}
    places = []
    for name in names:
        places.append((name, seen.get(name, 0)))
        seen[name] = places[-1][1] + 1
    return tuple(places)


def _places_of_all(calls: Sequence[CallDecisions]) -> list[tuple[Place, ...]]:
    """Of each call; calls of the same layers share them."""
    found: dict[tuple[str, ...], tuple[Place, ...]] = {}
    for names in {call.layers: None for call in calls}:
        found[names] = _places(names)
    return [found[call.layers] for call in calls]


def _layers(calls: Sequence[CallDecisions]) -> tuple[Place, ...]:
    """All places of all calls, in the order they first ran."""
    different = dict.fromkeys(_places_of_all(calls))
    return tuple(dict.fromkeys(place for places in different for place in places))
