"""Where tokens lie in the picture, against what the models make of them: every family that the host can build small."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lora_conductor.host.core import sees_text

from .catalogue import FAMILIES
from .family import build
from .truth import tokens_of

# Layers whose tokens are no sequence of the call, with the reason.
LEFT = {
    "ref_image_": "other pictures, with tokens of their own",
    "nerf_image_embedder": "rows are patches, tokens the pixels in one: rows that are mixed are never smoothed",
    "pixel_": "rows are patches, tokens the pixels in one",
    "PiD": "its last layer too",
    "Cosmos": "its last layer has the frames for rows",
    "ZImage": "its sequence is filled up to the same number",
}


def wider(family):
    """The same family with a latent that is half as wide again."""
    return replace(family, latent=(*family.latent[:-1], family.latent[-1] * 3 // 2))


@pytest.fixture(scope="module", params=FAMILIES)
def seen(request):
    """Tokens of a wider latent, as far as the model takes one, and of the family's own."""
    family = FAMILIES[request.param]
    if not family.in_host:
        pytest.skip(f"this ComfyUI has no {request.param}")
    if isinstance(family.latent[0], tuple):
        pytest.skip("latents of several parts")
    found = []
    for one in (wider(family), family):
        try:
            found.append((one, *tokens_of(one, build(one))))
        except Exception:  # noqa: BLE001 - whatever a model says of a size it does not take
            if one is family:
                raise
    return request.param, found


def test_a_token_of_the_picture_lies_where_it_is_put(seen, record_property):
    """Behind the last attention each number of the output is made of one token: the one that we say."""
    _, found = seen
    checked = wrong = 0
    for family, counts, spots, picture in found:
        for layer, its in spots.items():
            place = None if sees_text(layer) else picture.place(counts[layer])
            if place is None or any(len(tokens) != 1 for tokens in its.values()) or len(its) < 4:
                continue
            if len({next(iter(tokens)) for tokens in its.values()}) < 3:
                continue  # one token for all, or for a whole row
            sides = (1, *family.latent[1:])[-3:] if len(family.latent) > 2 else (1, 1, family.latent[-1])
            for spot, tokens in its.items():
                at = (0, 0, *spot)[-3:]
                frame, row, column = (
                    i * n // side
                    for i, n, side in zip(at, (place.frames, place.height, place.width), sides, strict=True)
                )
                checked += 1
                wrong += tokens != {place.start + (frame * place.height + row) * place.width + column}
    record_property("tokens checked", f"{checked}")
    assert not wrong


def test_what_grows_with_the_picture_alone_has_a_place_and_a_text_has_none(seen):
    name, found = seen
    if len(found) < 2:
        pytest.skip("one size alone")
    (big, many, _, wide), (small, few, _, own) = found
    grown = math.prod(big.latent[1:]) / math.prod(small.latent[1:])
    wrong = []
    for layer in few.keys() & many.keys():
        places = [None if sees_text(layer) else its.place(n) for its, n in ((wide, many[layer]), (own, few[layer]))]
        if many[layer] == few[layer] and any(place is not None for place in places):
            wrong.append(f"{layer} has {few[layer]} tokens whatever the picture, and a place")
        if many[layer] == grown * few[layer] and few[layer] > 4 and None in places:
            wrong.append(f"{layer} has {few[layer]} tokens of a picture, and no place")
    assert not [line for line in wrong if not _left(name, line)], wrong


def _left(family, line):
    layer = line.partition(" ")[0]
    return any(family.startswith(left) if left[0].isupper() else left in layer for left in LEFT)
