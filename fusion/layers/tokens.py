"""Which tokens are looked at, where looking at all of them would cost too much."""

from __future__ import annotations

import random
from functools import lru_cache

import torch
from torch import Tensor


def spread(tokens: int, most: int) -> list[int]:
    """Positions of ``most`` tokens in order, one in each of as many equal runs; all of them when there are no more.

    Their places within the runs are random, the same ones every time. At a fixed stride they would be a few columns of
    the picture wherever the stride and its width are commensurate: its left edge, for 64 of 4096 tokens.
    """
    if not most or tokens <= most:
        return list(range(tokens))
    place = random.Random(0)  # noqa: S311 - to spread, not to hide
    borders = [i * tokens // most for i in range(most + 1)]
    return [place.randrange(start, stop) for start, stop in zip(borders, borders[1:], strict=False)]


def take(features: Tensor, most: int, dim: int = 1) -> Tensor:
    """At most that many tokens of ``[batch, tokens, channels]``; a view of all if there are no more. 0 for all.

    Args:
        features: of which.
        most: tokens.
        dim: theirs, where the features have dimensions in front.
    """
    tokens = features.shape[dim]
    if not most or tokens <= most:
        return features
    return features.index_select(dim, _positions(tokens, most, features.device))


def take_rows(features: Tensor, tokens: int, most: int, segments: int = 1) -> Tensor:
    """Of ``[batch, tokens * segments * 2, channels]``, in each token and segment the rows of subject and style, the
    subject's, the style's and the subject's again: for at most that many tokens."""
    return features.index_select(1, _rows(tokens, most, segments, features.device))


def take_repeated(features: Tensor, most: int, times: int, segments: int = 1) -> Tensor:
    """At most that many tokens, 0 for all, of ``[batch, tokens, segments * channels]``, several times over: ``[times,
    segments * batch, tokens, channels]``, a tensor of its own."""
    batch, tokens, width = features.shape
    channels, step = width // segments, features.stride(1)
    if features.stride(2) == 1 and step % channels == 0 and (batch == 1 or features.stride(0) == tokens * step):
        # Rows of one segment each, whatever else may lie between two tokens.
        per_token = step // channels
        count = (batch * tokens - 1) * per_token + segments
        rows = features.as_strided((count, channels), (channels, 1))
        chosen = _repeated(tokens, most, times, segments, batch, per_token, features.device)
        return rows.index_select(0, chosen).unflatten(0, (times, segments * batch, -1))
    taken = take(features, most).unflatten(-1, (segments, -1)).permute(2, 0, 1, 3).flatten(0, 1)
    return taken.expand(times, *taken.shape).clone(memory_format=torch.contiguous_format)


@lru_cache(maxsize=256)
def _repeated(
    tokens: int, most: int, times: int, segments: int, batch: int, per_token: int, device: torch.device
) -> Tensor:
    with torch.inference_mode(False):
        first = [(row * tokens + at) * per_token for row in range(batch) for at in spread(tokens, most)]
        places = [place + its for its in range(segments) for place in first]
        return torch.tensor(places, device=device).repeat(times)


@lru_cache(maxsize=256)
def _rows(tokens: int, most: int, segments: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        pairs = [at * segments + its for at in spread(tokens, most) for its in range(segments)]
        return torch.tensor([2 * pair + role for pair in pairs for role in (0, 1, 0)], device=device)


@lru_cache(maxsize=256)
def _positions(tokens: int, most: int, device: torch.device) -> Tensor:
    # Sent to the device once: a copy in every call would make the host wait. Not an inference tensor, so that calls
    # that are differentiated can use it as well.
    with torch.inference_mode(False):
        return torch.tensor(spread(tokens, most), device=device)
