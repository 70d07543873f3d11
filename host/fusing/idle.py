"""Settings that were made and do nothing in this model, or in some of its layers: said, never silent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import fields

from ...fusion.policies import BlockMask, StaticPolicy
from ...fusion.routing import SETTINGS, Refinement, acting, name_of
from .spec import FusionSpec

NO_BLOCKS = "blocks known for subject or style are those of SDXL and FLUX, and this model is neither"


def without_effect(spec: FusionSpec) -> Iterator[str]:
    """A line for each."""
    if not spec.shared_layers:
        return
    policy, settings = spec.policy, spec.refinement
    names = {its.field: its.name for its in SETTINGS}
    changed = [f.name for f in fields(Refinement) if getattr(settings, f.name) != f.default]
    acts = acting(policy)
    for field in changed:
        name = names.get(field, field)
        if name not in acts:
            yield f"{name} does nothing: '{name_of(policy)}' has no use for it"
    blocks = spec.bank.model.blocks
    if isinstance(policy, BlockMask) and blocks not in BlockMask.KNOWN:
        yield f"'{policy.name}' keeps both LoRAs whole everywhere: {NO_BLOCKS}"
    if isinstance(policy, StaticPolicy):
        return
    if settings.layer_prior and "layer_prior" in acts and blocks not in BlockMask.KNOWN:
        yield f"layer_prior does nothing: {NO_BLOCKS}"
    if "granularity" in acts:
        yield from _granularity(spec)
    if settings.group_attention and "group_attention" in acts:
        groups = Counter(segment.group for segment in _shared(spec))
        found = sum(n for group, n in groups.items() if group is not None and n > 1)
        if not found:
            yield "group_attention does nothing: both LoRAs meet on no attention whose parts are known"
        elif found < groups.total():
            yield f"group_attention: {found} of {groups.total()} parts of layers share a decision; the rest go alone"


def _shared(spec: FusionSpec) -> list:
    return [segment for layer in spec.layers for segment in layer.segments if segment.shared]


def _granularity(spec: FusionSpec) -> Iterator[str]:
    settings, segments = spec.refinement, _shared(spec)
    if settings.granularity == "head":
        made = sum(segment.head_width is not None for segment in segments)
        if not made:
            yield "granularity head does nothing: both LoRAs meet on no queries, keys or values whose heads are known"
        elif made < len(segments):
            yield (
                f"granularity head: {made} of {len(segments)} parts of layers are made of attention heads; the others "
                "decide as a whole"
            )
    elif settings.granularity == "token":
        words = sum(segment.of_text for segment in segments)
        if words and settings.blur:
            yield f"blur: {words} of {len(segments)} parts of layers see words, which are not smoothed"
    if settings.granularity != "token" and settings.blur != Refinement().blur:
        yield "blur does nothing: granularity is not token"
