"""What saved workflows rely on, node by node, as the running server offers it; the snapshot of it only ever grows.

contract.py          appends what is new to tests/fixtures/contract.json; refuses to change anything that is in it
contract.py --check  only says whether it is as it should be
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bootstrap_host import HostError, bring_host
from comfy_server import ComfyServer, ServerError
from host_base import make_base
from repo_paths import REPO

SNAPSHOT = REPO / "tests" / "fixtures" / "contract.json"
OURS = "custom_nodes.lora-conductor"
# What these offer are a user's files and ComfyUI's own lists.
NOT_OUR_CHOICES = {"subject_lora", "style_lora", "encoder_name", "file", "sampler_name", "scheduler"}
Contract = dict[str, dict[str, Any]]


def contract_of(object_info: dict[str, Any]) -> Contract:
    """Inputs in the order in which the page saves their values, outputs in that of their sockets, by node id."""
    return {
        name: {
            "inputs": [
                _input(key, group, *node["input"][group][key])
                for group in ("required", "optional")
                for key in node["input_order"].get(group, [])
            ],
            "outputs": [list(output) for output in zip(node["output_name"], node["output"], strict=True)],
            "output_node": node["output_node"],
        }
        for name, node in sorted(object_info.items())
        if node["python_module"] == OURS
    }


def _input(name: str, group: str, kind: Any, options: dict[str, Any] | None = None) -> dict[str, Any]:
    options = options or {}
    made = {"name": name, "group": group, "type": "COMBO" if isinstance(kind, list) else kind}
    if name not in NOT_OUR_CHOICES and (choices := kind if isinstance(kind, list) else options.get("options")):
        made["choices"] = choices
    return made | {key: options[key] for key in ("default", "min", "max") if key in options}


def broken(old: Contract, new: Contract) -> list[str]:
    """Where a workflow saved under the old contract would not be read as it was meant; empty if everywhere."""
    found = []
    for name, node in old.items():
        if name not in new:
            found.append(f"{name}: the node is gone")
            continue
        for side in ("inputs", "outputs"):
            for place, was in enumerate(node[side]):
                now = new[name][side][place] if place < len(new[name][side]) else None
                if why := _changed(was, now):
                    found.append(f"{name}, {side[:-1]} {place + 1}: {why}")
        if node["output_node"] and not new[name]["output_node"]:
            found.append(f"{name}: it no longer runs by itself")
    return found


def _changed(was: Any, now: Any) -> str:
    """What is wrong with an input or output that should be what it was, or offer more; "" if nothing."""
    if now is None:
        return f"{was} is gone"
    if not isinstance(was, dict):
        return "" if was == now else f"was {was}, is {now}"
    for key in ("name", "group", "type", "default"):
        if was.get(key) != now.get(key):
            return f"{was['name']}: {key} was {was.get(key)!r}, is {now.get(key)!r}"
    choices = was.get("choices", [])
    if now.get("choices", [])[: len(choices)] != choices:
        return f"{was['name']}: choices were {choices}, are {now.get('choices')}"
    narrower = ("min" in was and not now.get("min", was["min"]) <= was["min"]) or (
        "max" in was and not now.get("max", was["max"]) >= was["max"]
    )
    return f"{was['name']}: narrower than {was.get('min')} to {was.get('max')}" if narrower else ""


def dumps(contract: Contract) -> str:
    """One line an input, so that a review sees what was appended."""
    nodes = []
    for name, node in contract.items():
        parts = []
        for key, value in node.items():
            lines = ",\n".join(f"   {json.dumps(entry)}" for entry in value) if isinstance(value, list) else ""
            parts.append(f'  "{key}": ' + (f"[\n{lines}\n  ]" if lines else json.dumps(value)))
        nodes.append(f' "{name}": {{\n' + ",\n".join(parts) + "\n }")
    return "{\n" + ",\n".join(nodes) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when something is not in it")
    check = parser.parse_args().check
    try:
        with tempfile.TemporaryDirectory() as folder, ComfyServer(bring_host(), make_base(Path(folder))) as server:
            now = contract_of(server.object_info())
    except (HostError, ServerError) as error:
        sys.exit(f"error: {error}")
    old = json.loads(SNAPSHOT.read_text(encoding="utf-8")) if SNAPSHOT.exists() else {}
    if faults := broken(old, now):
        sys.exit("error: saved workflows would break; mend the node, not the snapshot:\n" + "\n".join(faults))
    if check and now != old:
        sys.exit(f"error: {SNAPSHOT.name} lacks something new; run: make contract")
    if not check:
        SNAPSHOT.write_text(dumps(now), encoding="utf-8")


if __name__ == "__main__":
    main()
