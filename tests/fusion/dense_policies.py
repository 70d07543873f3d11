"""Dense float64 references of published rules, written from the papers and official code, not from ours.

Deltas are ``[out, in * kernel]`` numpy arrays; a layer is a pair (subject, style).
"""

import numpy as np

SUBJECT, STYLE, BOTH = (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)


def np_lora(subject, style, mu=0.5):
    """min over X of ||X - dW_c||^2 + mu ||X P||^2, plus dW_s; P projects on the row space of dW_s."""
    # The files are float32: singular values below its precision are rounding, not directions.
    projector = np.linalg.pinv(style, rcond=1e-6) @ style
    return style + subject @ np.linalg.inv(np.eye(len(projector)) + mu * projector)


def truncated(subject, style, rank):
    """The best approximation of the sum of that rank."""
    u, values, vh = np.linalg.svd(subject + style, full_matrices=False)
    return (u[:, :rank] * values[:rank]) @ vh[:rank]


def trimmed(delta, density):
    """All but the largest entries of the whole matrix set to 0, by sorting."""
    flat = delta.flatten()
    out = np.zeros_like(flat)
    largest = np.argsort(-np.abs(flat))[: round(density * flat.size)]
    out[largest] = flat[largest]
    return out.reshape(delta.shape)


def elected_mean(one, two):
    """TIES' election and disjoint mean, case by case."""
    agree = np.sign(one) == np.sign(two)
    one_alone = (two == 0) | (~agree & (np.abs(one) > np.abs(two)))
    two_alone = (one == 0) | (~agree & (np.abs(two) > np.abs(one)))
    # Where both signs weigh the same, + is elected.
    return np.where(agree, (one + two) / 2, np.where(one_alone, one, np.where(two_alone, two, np.maximum(one, two))))


def knots(subject, style, density):
    """KnOTS as published: the SVD of both side by side, TIES on the right vectors' halves, and back."""
    width = subject.shape[1]
    u, values, vh = np.linalg.svd(np.concatenate([subject, style], axis=1), full_matrices=False)
    rank = int((values > values[0] * 1e-6).sum())  # beyond it, vectors are rounding and count in TIES' shares
    merged = elected_mean(*(trimmed(part, density) for part in (vh[:rank, :width], vh[:rank, width:])))
    return u[:, :rank] * values[:rank] @ merged


def tsv(subject, style):
    """TSV-Merge by the polar factor ``X (X^T X)^(-1/2)`` of the singular vectors put side by side."""

    def nearest(x):
        values, vectors = np.linalg.eigh(x.T @ x)
        return x @ (vectors / np.sqrt(values)) @ vectors.T

    parts = []
    for delta in (subject, style):
        u, values, vh = np.linalg.svd(delta, full_matrices=False)
        rank = int((values > values[0] * 1e-6).sum())
        parts.append((u[:, :rank], values[:rank], vh[:rank].T))
    left, values, right = (np.concatenate(each, axis=-1) for each in zip(*parts, strict=True))
    return nearest(left) * values @ nearest(right).T


def keep_probability(delta, density, epsilon):
    """DELLA: keep probabilities by the rank of an entry's magnitude in its row, as mergekit spreads them."""
    p = np.empty_like(delta)
    for row, own in zip(delta, p, strict=True):
        for rank, j in enumerate(np.argsort(np.abs(row))):
            own[j] = density - epsilon + 2 * epsilon * rank / (len(row) - 1)
    return p


def dropped(delta, p, draws):
    """DARE's and DELLA's entries for given uniform draws: kept with probability p, and divided by it."""
    return np.where(draws < p, delta / p, 0)


def times_of(steps):
    """t / T of each step: of so many even ones, or as given."""
    return [t / steps for t in range(steps)] if isinstance(steps, int) else steps


def k_lora(pairs, ranks, variant, steps, alpha=1.5):
    """The official code's choice, [layer][step], with the step in place of its call counter."""
    ratios = np.array([np.abs(c).sum() / np.abs(s).sum() for c, s in pairs])
    gamma = ratios[ratios < 3 * ratios.mean()].mean()
    chosen = []
    for (c, s), (rank_c, rank_s) in zip(pairs, ranks, strict=True):
        top_c, top_s = (np.sort(np.abs(m), axis=None)[::-1][: rank_c * rank_s].sum() for m in (c, s))
        row = []
        for t in times_of(steps):
            scale = alpha * t + 0.5 if variant == "s" else (alpha * t + 0.85 * alpha) % alpha
            row.append(SUBJECT if top_c / gamma > top_s * scale else STYLE)
        chosen.append(row)
    return chosen


def est_lora(pairs, discrepancy, steps, alpha=1.5):
    """EST-LoRA's rule with SD.Next's balance, [layer][step], from Frobenius norms."""
    energies = [[np.linalg.norm(m) ** 2 for m in pair] for pair in pairs]
    balance = sum(c for c, _ in energies) / sum(s for _, s in energies)
    return [
        [SUBJECT if c / balance >= (alpha * t + 1 - discrepancy) * s else STYLE for t in times_of(steps)]
        for c, s in energies
    ]


def ssr_merge(factors, inputs, ridge):
    """SSR-Merge as the ridge regression that it solves: R [A_c; A_s] x = [A_c x; 0] on c's inputs, [0; A_s x] on s's.

    Args:
        factors: (up, down) of each LoRA.
        inputs: [in, tokens] of each.
    """
    downs = np.concatenate([down for _, down in factors])
    rank, tokens = len(downs), sum(x.shape[1] for x in inputs)
    wanted, start = [], 0
    for (_, down), x in zip(factors, inputs, strict=True):
        target = np.zeros((rank, x.shape[1]))
        target[start : start + len(down)] = down @ x
        wanted.append(target)
        start += len(down)
    seen = np.concatenate([downs @ x for x in inputs], axis=1) / tokens**0.5
    wanted = np.concatenate(wanted, axis=1) / tokens**0.5
    # The ridge as rows of a plain least-squares problem: no Gram matrix is formed.
    left = np.concatenate([seen.T, ridge**0.5 * np.eye(rank)])
    right = np.concatenate([wanted.T, np.zeros((rank, rank))])
    router = np.linalg.lstsq(left, right, rcond=None)[0].T
    return np.concatenate([up for up, _ in factors], axis=1) @ router @ downs
