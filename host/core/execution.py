"""Where in the running workflow we are: which node executes, and where an input of a node comes from."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_execution.utils import get_executing_context


@dataclass(frozen=True)
class Place:
    """An execution of a node.

    Attributes:
        prompt: id of the queued workflow.
        node: id of the node ("1:2:3" inside subgraphs).
        item: index in a list that the node is executed for one by one; None for a single execution.
    """

    prompt: str
    node: str
    item: int | None


def executing() -> Place | None:
    """The node that executes in this thread; None outside of a workflow."""
    context = get_executing_context()
    return None if context is None else Place(context.prompt_id, str(context.node_id), context.list_index)


def sources(prompt: Mapping[str, Any], node: str | None, name: str) -> Iterator[str]:
    """Ids of all nodes that an input of a node comes from, nearest first.

    Args:
        prompt: the workflow in API format.
        node: id of the node.
        name: of the input.
    """
    ways = deque([inputs_of(prompt, node).get(name)])
    seen: set[str] = set()
    while ways:
        link = ways.popleft()
        source = link[0] if isinstance(link, list) and link else None
        if not isinstance(source, str) or source in seen or source not in prompt:
            continue
        seen.add(source)
        yield source
        ways += inputs_of(prompt, source).values()


def inputs_of(prompt: Mapping[str, Any], node: str | None) -> Mapping[str, Any]:
    """Inputs of a node, by name. Core has looked only at those that a node declares, and of the nodes that it runs."""
    found = prompt.get(node or "")
    inputs = found.get("inputs") if isinstance(found, Mapping) else None
    return inputs if isinstance(inputs, Mapping) else {}
