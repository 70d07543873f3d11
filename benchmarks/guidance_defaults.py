"""What a user of Metric Guided Sampler gets who sets nothing."""

from __future__ import annotations

from functools import cache


@cache
def guidance_defaults() -> dict[str, float]:
    """The node's subject and style strengths, guidance strength and window (start, end, every). In the host only."""
    from lora_conductor.nodes.sampler import MetricGuidedSampler

    node = {item.id: item.default for item in MetricGuidedSampler.define_schema().inputs if hasattr(item, "default")}
    names = {"subject": "subject_strength", "style": "style_strength"}
    names |= {name: f"guidance_{name}" for name in ("strength", "start", "end", "every")}
    return {name: node[known] for name, known in names.items()}
