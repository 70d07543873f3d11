"""The routing map's events: what they say is what the record says, and nobody pays for a map that nobody sees."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import lora_conductor.host.core.told as told_module
import lora_conductor.host.maps.live as live_map
from comfy_server import ComfyServer, WorkflowError
from lora_conductor.fusion.layers import Batch
from lora_conductor.fusion.records import CallDecisions, Decision, record_of
from lora_conductor.host.fusing import attachment_of, load_loras
from lora_conductor.host.loras import LoraChoice
from lora_conductor.host.maps.codes import encode
from lora_conductor.host.maps.columns import Columns
from lora_conductor.host.maps.live import EVENT, RATE

from ..map_reading import decode
from ..tiny import sample, world_flux
from ..workflows import STYLE, SUBJECT, Workflow, loader, record, router, sampled, world

PRECISION = 0.006  # of the two-character codes


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=PRECISION, atol=1e-11, equal_nan=True)


def test_codes_keep_half_a_percent_and_the_special_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.exp(torch.randn(4, 500, generator=generator, dtype=torch.float64) * 6 - 4).clamp(1e-12, 2e4)
    values[0, :3] = torch.tensor([0.0, 1.0, math.nan])
    decoded = decode(encode(values))
    assert decoded[0, :2].tolist() == [0.0, 1.0] and decoded[0, 2].isnan()
    assert same(decoded, values)
    assert len(encode(values)) == 8 * 500


def test_numbers_out_of_range_go_to_its_ends() -> None:
    low, high = decode(encode(torch.tensor([[1e-30], [1e30], [math.inf], [0.5]])))[:2, 0].tolist()
    assert low == 2.0**-40 and high > 2e4


def decisions(steps: int, layers: int) -> list[CallDecisions]:
    """Two calls a step, of three samples; layers come and go, some weights are plain numbers, some scores missing."""
    generator = torch.Generator().manual_seed(1)

    def tensor() -> torch.Tensor:
        return torch.rand(3, 1, 2, generator=generator)

    calls = []
    for call in range(2 * steps):
        made = []
        for i in range(call % 3, layers):
            scores = {"subject": tensor(), "style": tensor()} if i % 4 else {}
            made.append(Decision(f"layer.{i}", scores, {"subject": tensor(), "style": float(i % 2)}))
        calls.append(CallDecisions.of(call // 2, Batch(), (0,), made))
    return calls


def test_columns_are_the_record_s() -> None:
    calls = decisions(5, 7)
    record = record_of(calls, tuple(range(6)), {"policy": {}, "loras": (), "refinement": {}})
    columns = Columns()
    columns.fetch(calls[:4])
    assert set(columns.take_arrived()) == {0, 1}
    columns.fetch(calls[4:])
    found = columns.take_arrived()
    assert tuple(columns.layers) == record.layers and set(found) == set(range(5))
    expected = torch.cat([record.weights, record.scores])
    for step, values in found.items():
        torch.testing.assert_close(values, expected[:, :, step], equal_nan=True)


def test_columns_of_plain_numbers() -> None:
    """As policies that measure nothing give them."""
    made = [Decision(f"layer.{i}", {}, {"subject": 1.0, "style": 0.25 * i}) for i in range(3)]
    columns = Columns()
    columns.fetch([CallDecisions.of(0, Batch(), (0,), made)])
    (values,) = columns.take_arrived().values()
    assert values[:2].tolist() == [[1.0, 1.0, 1.0], [0.0, 0.25, 0.5]] and values[2:].isnan().all()


class Told:
    """What the page of a queued workflow was told."""

    def __init__(self) -> None:
        self.messages: list[tuple[float, dict[str, Any]]] = []

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        if kind == EVENT:
            self.messages.append((time.monotonic(), data))

    def map_of(self, node: str) -> tuple[list[str], torch.Tensor]:
        """Layers and ``[4, layers, steps]`` as the page puts them together; of the node's last run."""
        mine = [m for _, m in self.messages if m["node"] == node]
        mine = [m for m in mine if m["run"] == mine[-1]["run"]]
        layers: list[str] = []
        for message in mine:
            assert message["first_layer"] == len(layers)
            layers += message["layers"]
        columns = {int(s): decode(text) for m in mine for s, text in m["columns"].items()}
        assert sorted(columns) == list(range(mine[0]["steps"])) and mine[-1]["finished"]
        return layers, torch.stack([columns[s] for s in sorted(columns)], -1)


def as_table(record: dict[str, Any]) -> torch.Tensor:
    tables = record["weights"] + record["scores"]
    known = [[[math.nan if v is None else v for v in layer] for layer in table] for table in tables]
    return torch.tensor(known, dtype=torch.float64)


def test_events_are_the_run_s_record(server: ComfyServer, record_property: Callable[[str, object], None]) -> None:
    told = Told()
    graph = world(dual=loader(), routed=router("kl_soft"), **sampled("a", "routed", report=True, steps=20))
    graph |= sampled("b", "dual", report=True, steps=3)
    outputs = server.queue(graph, timeout=300, on_event=told)["outputs"]
    for name, node in (("a", "routed"), ("b", "dual")):
        layers, table = told.map_of(node)
        assert layers == record(outputs, name)["layers"]
        assert same(table, as_table(record(outputs, name)))
    times = [at for at, message in told.messages if message["node"] == "routed" and not message["finished"]]
    assert len(times) > 1, "the map came only after sampling"
    # The server's own queue may hand two on at once, so the rate is that of the whole run.
    assert len(times) <= 1 + RATE * (times[-1] - times[0]) + 1
    sizes = [len(str(message)) for _, message in told.messages]
    record_property("routing events of 20 steps", len(times) + 1)
    record_property("characters of the largest event", max(sizes))
    assert max(sizes) < 20_000


def test_two_queued_runs_do_not_mix(server: ComfyServer) -> None:
    def graph(seed: int) -> Workflow:
        return world(dual=loader(), **sampled("a", "dual", report=True, seed=seed, steps=4))

    runs = []
    for seed in (31, 32):
        told = Told()
        outputs = server.queue(graph(seed), timeout=300, on_event=told)["outputs"]
        assert same(told.map_of("dual")[1], as_table(record(outputs, "a")))
        runs.append({(m["prompt"], m["run"]) for _, m in told.messages})
    assert [len(run) for run in runs] == [1, 1] and runs[0] != runs[1]


def test_copies_of_a_router_have_maps_of_their_own(server: ComfyServer) -> None:
    told = Told()
    graph = world(dual=loader(), one=router("kl_soft"), two=router("kl_soft"))
    graph |= sampled("a", "one", report=True, seed=41) | sampled("b", "two", report=True, seed=42)
    outputs = server.queue(graph, timeout=300, on_event=told)["outputs"]
    for name, node in (("a", "one"), ("b", "two")):
        assert same(told.map_of(node)[1], as_table(record(outputs, name)))


async def heard(server: ComfyServer, client: str) -> list[dict[str, Any]]:
    """Our events in the first moments of a page's connection, once it has asked for what it missed."""
    import aiohttp

    messages: list[dict[str, Any]] = []
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{server.url}/ws?clientId={client}") as socket:
        await asyncio.to_thread(server.post, f"/api/lora_conductor/tell_again?client={client}")
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
            while True:
                message = await socket.receive(2.0)
                messages.append(json.loads(message.data))
    return [message["data"] for message in messages if message["type"] == EVENT]


def test_a_page_that_comes_back_is_told_the_whole_map(server: ComfyServer) -> None:
    """Of its own runs, of each node's newest; and again if that connection is lost, too."""
    graph = world(dual=loader(), routed=router("kl_soft"), **sampled("a", "routed", report=True, steps=3))
    away = uuid.uuid4().hex
    for seed in (51, 52):
        graph["a.sample"]["inputs"]["seed"] = seed
        prompt = server.post("/prompt", {"prompt": graph, "client_id": away})["prompt_id"]
        while prompt not in (history := server.get(f"/history/{prompt}")):
            time.sleep(0.1)
    for _ in range(2):
        (message,) = asyncio.run(heard(server, away))
        assert (message["prompt"], message["node"], message["finished"]) == (prompt, "routed", True)
        told = Told()
        told(EVENT, message)
        layers, table = told.map_of("routed")
        assert layers == record(history[prompt]["outputs"], "a")["layers"]
        assert same(table, as_table(record(history[prompt]["outputs"], "a")))
    assert asyncio.run(heard(server, "somebody_else")) == []


@pytest.mark.parametrize(
    ("why", "policy", "files"),
    [
        ("merged", "sum", {}),
        ("merged", "ties", {}),
        ("one_role", "recommended", {"style": "None"}),
        ("one_role", "sum", {"style": "None"}),
        ("no_loras", "recommended", {"subject": "None", "style": "None"}),
    ],
)
def test_runs_that_route_nothing_say_why(server: ComfyServer, why: str, policy: str, files: dict[str, str]) -> None:
    """On the router, and on the loader where it routes alone."""
    told = Told()
    graph = world(dual=loader(**files), routed=router(policy), **sampled("a", "routed", report=True))
    graph |= sampled("b", "dual") if policy == "recommended" else {}
    outputs = server.queue(graph, timeout=300, on_event=told)["outputs"]
    said = {message["node"]: message for _, message in told.messages}
    assert set(said) == ({"routed", "dual"} if policy == "recommended" else {"routed"})
    assert len(told.messages) == len(said)
    for message in said.values():
        assert (message["layers"], message["columns"], message["finished"]) == ([], {}, True)
        assert message["nothing"] == why
    assert outputs["a.report"]["routing"][0]["nothing"] == why


def test_a_stopped_run_says_so(server: ComfyServer) -> None:
    told = Told()
    graph = world(dual=loader(), routed=router("kl_soft"), **sampled("a", "routed", steps=400))

    def stop(kind: str, data: dict[str, Any]) -> None:
        told(kind, data)
        if kind == EVENT and not data.get("stopped"):
            server.interrupt()

    with pytest.raises(WorkflowError, match="interrupted"):
        server.queue(graph, timeout=300, on_event=stop)
    last = told.messages[-1][1]
    assert last["stopped"] and not last["finished"] and len(last["columns"]) < 400


def test_frozen_steps_are_on_the_map(server: ComfyServer) -> None:
    told = Told()
    graph = world(dual=loader(), routed=router("kl_soft"), **sampled("a", "routed", report=True, steps=6))
    graph["routed"]["inputs"]["freeze_after"] = 2
    outputs = server.queue(graph, timeout=300, on_event=told)["outputs"]
    assert same(told.map_of("routed")[1], as_table(record(outputs, "a")))


@pytest.mark.parametrize("connected", [True, False])
def test_cost(connected: bool, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]) -> None:
    """Time spent on the map, of the whole run's: with a page, and without. In CPU time: a machine has other work."""
    sent: list[str] = []
    queue = SimpleNamespace(currently_running={})
    # Core makes it into text in the server's thread, which takes its turns from sampling.
    server = SimpleNamespace(
        send_sync=lambda event, message, client: sent.append(json.dumps(message)),
        prompt_queue=queue,
        sockets={"page": object()} if connected else {},
    )
    monkeypatch.setattr(told_module, "page_of_prompt", lambda: (server, None, "page"))
    spent = 0.0

    def timed(name: str) -> None:
        plain = getattr(live_map.LiveMap, name)

        def method(self: Any, *args: Any) -> None:
            nonlocal spent
            start = time.thread_time()
            plain(self, *args)
            spent += time.thread_time() - start

        monkeypatch.setattr(live_map.LiveMap, name, method)

    timed("_tick")
    timed("finish")
    choices = [LoraChoice(SUBJECT, "subject", 1.0, 1.0), LoraChoice(STYLE, "style", 1.0, 1.0)]
    model, _, _ = load_loras(world_flux(), None, choices)
    live = attachment_of(model).live
    assert live is not None
    live.shown_on = "1"
    sample(model, steps=2, cfg=2.5)
    spent = 0.0
    start = time.thread_time()
    sample(model, steps=40, cfg=2.5)
    share = spent / (time.thread_time() - start)
    record_property(f"share of sampling time, {'a page' if connected else 'nobody'} connected", share)
    assert len(sent) > 2 if connected else len(sent) == 2, "to nobody only the whole, kept for a page that comes back"
    # Of 66 parts of layers in a model that is as small as can be; it is the parts that cost.
    assert share <= (0.01 if connected else 0.002)
