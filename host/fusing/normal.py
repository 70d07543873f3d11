"""Which share of what both LoRAs add is usual for the subject under a policy."""

from __future__ import annotations

USUAL = {
    "recommended": (0.34, 0.34),
    "paper": (0.63, 0.84),
    "kl_soft": (0.52, 0.73),
    "js": (0.63, 0.84),
    "cosine": (0.60, 0.82),
    "energy": (0.61, 0.85),
    "balanced": (0.34, 0.34),
    "k_lora": (0.68, 0.71),
    "est_lora": (0.43, 0.48),
}
"""By policy: the middle nine tenths of the pairs of our small world; made by ``make bench-shares``."""


def usual(policy: str) -> str:
    """In words that follow a share, by what users call the policy; empty where nothing was measured."""
    if policy not in USUAL:
        return ""
    low, high = USUAL[policy]
    between = f"{low:.0%}" if f"{low:.0%}" == f"{high:.0%}" else f"{low:.0%} to {high:.0%}"
    return f" (usual for {policy}: {between})"
