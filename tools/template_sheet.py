"""One template as it is being drawn: nodes by their definitions, in groups that stand in columns and two rows."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TITLE = 30  # a node's title bar lies above its position
GAP, HEAD = 40, 80  # between nodes; from a group's upper edge to its first node
SEAM = 20  # between groups
SCALE = 0.7  # at which a template opens
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
NOTE = {"color": "#432", "bgcolor": "#653"}
OURS = {"color": "#223", "bgcolor": "#335"}
# Height, and the room that is left below for what comes with a run: reports, maps, curves.
HEIGHTS = {
    "BakeFusedLoRA": (194, 60),
    "CFGGuider": (120, 0),
    "CLIPLoader": (108, 0),
    "CLIPSetLastLayer": (60, 0),
    "CLIPTextEncode": (150, 0),
    "CLIPVisionLoader": (60, 0),
    "Canny": (84, 0),
    "CheckpointLoaderSimple": (100, 0),
    "ComparePolicies": (412, 0),
    "ConditioningZeroOut": (36, 0),
    "ControlNetApplyAdvanced": (188, 0),
    "ControlNetLoader": (60, 0),
    "DualCLIPLoader": (132, 0),
    "DualLoRADynamicLoader": (214, 560),
    "EmptyFlux2LatentImage": (108, 0),
    "EmptyLatentImage": (108, 0),
    "EmptySD3LatentImage": (108, 0),
    "Flux2Scheduler": (108, 0),
    "FluxGuidance": (60, 0),
    "GuidanceReferences": (106, 0),
    "ImageCompare": (460, 0),
    "KLLayerRouter": (210, 600),
    "KSampler": (264, 0),
    "KSamplerSelect": (60, 0),
    "LatentUpscaleBy": (84, 0),
    "LoadImage": (330, 0),
    "MeasureMyPair": (430, 520),
    "MetricGuidedSampler": (586, 560),
    "ModelSamplingAuraFlow": (60, 0),
    "PreviewAny": (300, 0),
    "PreviewImage": (320, 0),
    "PrimitiveInt": (84, 0),
    "RandomNoise": (84, 0),
    "RoutingReport": (100, 520),
    "SamplerCustomAdvanced": (108, 0),
    "SaveImage": (460, 0),
    "SaveRoutingPlan": (80, 0),
    "UNETLoader": (84, 0),
    "VAEDecode": (56, 0),
    "VAELoader": (60, 0),
}


@dataclass(frozen=True)
class Out:
    """An output socket of a node."""

    node: dict[str, Any]
    slot: int


@dataclass
class Group:
    """A titled box of nodes, one below the other."""

    title: str
    column: int
    row: int
    color: str
    width: int
    nodes: list[tuple[dict[str, Any], int]] = field(default_factory=list)

    @property
    def height(self) -> int:
        return HEAD + sum(node["size"][1] + room + GAP + TITLE for node, room in self.nodes) - TITLE


class Sheet:
    """Nodes, links and groups of a template, and the file that they make.

    Args:
        definitions: every node's definition, as the server's ``/object_info`` gives them.
    """

    def __init__(self, definitions: dict[str, Any]) -> None:
        self._definitions = definitions
        self._nodes: list[dict[str, Any]] = []
        self._links: list[list[Any]] = []
        self._groups: list[Group] = []

    def group(self, title: str, column: int, row: int = 0, *, color: str = "#3f789e", width: int = 350) -> Group:
        made = Group(title, column, row, color, width)
        self._groups.append(made)
        return made

    def note(self, title: str, text: str, *, width: int) -> None:
        """Words above the groups."""
        rows = [line for line in text.splitlines() if line]
        height = 70 + sum(46 if row.startswith("#") else 18 * (1 + len(row) // (width // 7)) for row in rows)
        place = {"pos": [0, -TITLE - SEAM - height], "size": [width, height], "title": title}
        self._nodes.append(self._node("MarkdownNote", [], [], [text], **place, **NOTE))

    def add(
        self,
        group: Group,
        kind: str,
        title: str | None = None,
        *,
        models: tuple[dict[str, str], ...] = (),
        tall: int | None = None,
        below: int | None = None,
        **given: Any,
    ) -> dict[str, Any]:
        """A node at the end of a group; inputs that are not given are unconnected, or at their defaults.

        Args:
            models: the files that it loads, as ComfyUI's page offers them for download.
            tall: the node's height instead of the usual one.
            below: the room below it instead of the usual one.
        """
        definition = self._definitions[kind]
        sockets, widgets, values = [], [], []
        for section in ("required", "optional"):
            for name in definition["input_order"].get(section, []):
                what, *rest = definition["input"][section][name]
                options = rest[0] if rest else {}
                value = given.pop(name, None)
                entry: dict[str, Any] = {"name": name, "type": what if isinstance(what, str) else "COMBO"}
                entry["link"] = value if isinstance(value, Out) else None
                if not isinstance(what, list) and what not in WIDGETS:
                    if options.get("socketless"):
                        continue  # the page's own
                    sockets.append(entry | ({"shape": 7} if section == "optional" else {}))
                    continue
                widgets.append(entry | {"widget": {"name": name}})
                values.append(_default(what, options) if value is None or isinstance(value, Out) else value)
                if options.get("control_after_generate"):
                    values.append("fixed")
                if options.get("image_upload"):
                    values.append("image")
        if given:
            raise KeyError(f"{kind} has no input {', '.join(given)}")
        outputs = [
            {"name": name, "type": of, "links": []}
            for name, of in zip(definition["output_name"], definition["output"], strict=True)
        ]
        usual, room = HEIGHTS[kind]
        more: dict[str, Any] = {"title": title} if title else {}
        if definition["python_module"].startswith("custom_nodes."):
            more |= OURS
        if kind == "PreviewAny":
            values = []  # its widgets are the page's
        node = self._node(kind, [*sockets, *widgets], outputs, values, size=[group.width, tall or usual], **more)
        node["properties"] = {"Node name for S&R": kind} | ({"models": list(models)} if models else {})
        self._nodes.append(node)
        group.nodes.append((node, room if below is None else below))
        self._connect(node)
        return node

    def written(self) -> dict[str, Any]:
        """The template, as the page saves it."""
        boxes = self._placed()
        for order, node in enumerate(self._nodes):
            node["order"] = order
        groups = [
            {"id": number, "title": g.title, "bounding": box, "color": g.color, "font_size": 24, "flags": {}}
            for number, (g, box) in enumerate(boxes, 1)
        ]
        return {
            "revision": 0,
            "last_node_id": len(self._nodes),
            "last_link_id": len(self._links),
            "nodes": self._nodes,
            "links": self._links,
            "groups": groups,
            "config": {},
            "extra": {"ds": {"scale": SCALE, "offset": [100, 180 - min(node["pos"][1] for node in self._nodes)]}},
            "version": 0.4,
        }

    def _node(self, kind: str, inputs: list[Any], outputs: list[Any], values: list[Any], **more: Any) -> dict[str, Any]:
        node = {"id": len(self._nodes) + 1, "type": kind, "pos": [0, 0], "size": [0, 0], "flags": {}, "order": 0}
        node |= {"mode": 0, "inputs": inputs, "outputs": outputs, "properties": {}, "widgets_values": values}
        return node | more

    def _connect(self, node: dict[str, Any]) -> None:
        for slot, entry in enumerate(node["inputs"]):
            if not isinstance(entry["link"], Out):
                continue
            source, number = entry["link"], len(self._links) + 1
            output = source.node["outputs"][source.slot]
            self._links.append([number, source.node["id"], source.slot, node["id"], slot, output["type"]])
            output["links"].append(number)
            entry["link"] = number

    def _placed(self) -> list[tuple[Group, list[int]]]:
        """Nodes put in their places, and the boxes of their groups.

        Columns stand side by side; the second row begins where the first is over in every column that has both.
        """
        columns = sorted({g.column for g in self._groups})
        both = [c for c in columns if len({g.row for g in self._groups if g.column == c}) > 1]
        firsts = [g.height for g in self._groups if g.row == 0 and g.column in both]
        lower = max(firsts, default=0) + SEAM
        boxes = []
        x = 0
        for column in columns:
            here = [g for g in self._groups if g.column == column]
            width = max(g.width for g in here) + 40
            for g in here:
                top = lower if g.row else 0
                # The upper of two reaches down to the lower one.
                tall = lower - SEAM if column in both and not g.row else g.height
                boxes.append((g, [x, top, width, tall]))
                y = top + HEAD
                for node, room in g.nodes:
                    node["pos"] = [x + 20, y]
                    y += node["size"][1] + room + GAP + TITLE
            x += width + SEAM
        return boxes


def out(node: dict[str, Any], name: str | int = 0) -> Out:
    """A node's output by name, or by number."""
    slot = name if isinstance(name, int) else [o["name"] for o in node["outputs"]].index(name)
    return Out(node, slot)


def text_of(template: dict[str, Any]) -> str:
    """A template as its file holds it: one line a node, so that changes can be read."""
    lines = []
    for key, value in template.items():
        if key in ("nodes", "links", "groups"):
            rows = ",\n".join(f"    {json.dumps(row)}" for row in value)
            lines.append(f"  {json.dumps(key)}: [\n{rows}\n  ]")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write(path: Path, template: dict[str, Any]) -> None:
    path.write_text(text_of(template), encoding="utf-8")


def _default(what: Any, options: dict[str, Any]) -> Any:
    if "default" in options:
        return options["default"]
    choices = what if isinstance(what, list) else options.get("options")
    if choices:
        return choices[0]
    return {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}[what]
