"""Which rows are whose: of a model call, and in a layer's features."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lora_conductor.fusion.adapters import Geometry, LowRankDelta
from lora_conductor.fusion.layers import Batch, FusedLayer
from lora_conductor.fusion.layers.rows import Rows

FEW = st.integers(1, 4)


@given(tiles=FEW, prompts=FEW, latents=FEW)
def test_tiles_follow_each_other_and_each_has_all_prompts(tiles, prompts, latents):
    """A pack that cuts a picture into tiles puts whole batches of core's one after another."""
    keys = tuple(f"positive.{i}" for i in range(prompts))
    owner = torch.tensor([p for _ in range(tiles) for p in range(prompts) for _ in range(latents)])
    batch = Batch(keys, rows=len(owner), latents=latents)
    parts = batch.parts(owner)
    assert parts is not None and [part.unique().tolist() for part in parts] == [[p] for p in range(prompts)]
    assert torch.equal(batch.joined(parts), owner)


def test_rows_that_are_not_the_calls_have_no_parts():
    batch = Batch(("negative.0", "positive.0"), rows=4, latents=2)
    assert batch.parts(torch.zeros(8)) is None and batch.parts(torch.zeros(3)) is None
    assert Batch(("positive.0",), rows=4).parts(torch.zeros(8)) is not None, "one prompt has them all"


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((2, 6, 8), Rows.FIRST),
        ((2, 8), Rows.FIRST),
        ((7, 2, 8), Rows.SECOND),
        ((6, 2, 8), Rows.MIXED),
        ((12, 8), Rows.MIXED),
        ((1, 12, 8), Rows.MIXED),
        ((6, 5, 8), Rows.MIXED),
        ((8,), Rows.MIXED),
    ],
)
def test_where_the_rows_are(shape, wanted):
    features = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    found = Rows.of(features, 2, False)
    assert found is wanted and Rows.of(features, 0, False) is Rows.FIRST
    arranged = found.arranged(features)
    assert arranged.shape[0] == (1 if wanted is Rows.MIXED else 2)
    assert torch.equal(found.restored(arranged, features), features)


@pytest.mark.parametrize("shape", [(3, 6, 8), (7, 3, 8), (6, 3, 8), (18, 8), (1, 18, 8)])
@pytest.mark.parametrize("conv", [False, True], ids=["linear", "conv"])
def test_wherever_the_rows_are_the_same_is_added(shape, conv):
    """The plain sum does not ask whose a row is; decisions see the rows of the call first, or a single one."""
    up, down = torch.randn(5, 2), torch.randn(2, 8, *([1, 1] if conv else []))
    geometry = Geometry(8, 5, *(((1, 1), (1, 1), (0, 0), (1, 1)) if conv else ()))
    layer = FusedLayer(
        "a", geometry, [("subject", 1.0, LowRankDelta(down, up, 1.0)), ("style", 0.5, LowRankDelta(down, up, 1.0))]
    )
    weight = torch.randn(5, 8, *([1, 1] if conv else []))
    x = torch.randn(18, 8, 2, 3) if conv else torch.randn(shape)
    run = F.conv2d if conv else F.linear
    seen = []

    def decide(segment, probe):
        seen.append((probe.base.shape[0], probe.mixed))
        return {}

    fused = layer.fuse(x, run(x, weight), decide, batch_rows=3)
    wanted = run(x, weight) + 1.5 * run(x, (up @ down.flatten(1)).reshape(weight.shape))
    torch.testing.assert_close(fused, wanted)
    mixed = conv or shape not in [(3, 6, 8), (7, 3, 8)]
    assert seen == [(1 if mixed else 3, mixed)]
