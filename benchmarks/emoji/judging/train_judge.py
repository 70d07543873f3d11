"""Train the small world's judge (35 minutes of one CPU core, 20 of them for the autoencoder).

    python -m benchmarks.emoji.judging.train_judge --world FOLDER_WITH_emoji64.npz

Trained on 95 % of all pictures; no picture of a held-out subject in a held-out style is ever seen, and the 5 % left out
are what it is tested on. Every second picture has been through the small world's autoencoder, as all that it will judge
has: a style that is fine strokes looks different after that.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from ...host import enter_host
from ..world.augment import crop, soften
from ..world.pictures import Pictures, load_pictures
from ..world.precision import autocast
from ..world.small_world import SmallWorld
from .judge import JUDGE_FILE, METADATA_KEY, JudgeNet


def split(pictures: Pictures, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Masks of the training pictures, the 5 % left out, and the held-out subjects in held-out styles."""
    tested = pictures.where(pictures.holdout_subjects, pictures.holdout_styles)
    left_out = torch.rand(len(tested), generator=torch.Generator().manual_seed(seed)) < 0.05
    return ~tested & ~left_out, ~tested & left_out, tested


def through_autoencoder(pictures: Pictures, small: SmallWorld, batch: int = 128) -> Tensor:
    """All pictures encoded and decoded, [N, 3, 64, 64] uint8."""
    made = [small.reconstruct(part.float() / 255) for part in pictures.images.split(batch)]
    return (torch.cat(made) * 255).round().byte()


def references(net: JudgeNet, pictures: Pictures) -> Tensor:
    """Unit embeddings [24, styles, 128] of the held-out subjects' true pictures, NaN where there is none."""
    table = torch.full((len(pictures.holdout_subjects), len(pictures.style_names), net.subject.out_features), torch.nan)
    for i, name in enumerate(pictures.holdout_subjects):
        mask = pictures.where([name])
        with torch.inference_mode():
            embedding, _ = net(pictures.images[mask].float() / 255)
        table[i, pictures.style[mask]] = functional.normalize(embedding, dim=1)
    return table


def train(pictures: Pictures, decoded: Tensor, minutes: float, batch: int = 96, margin: float = 0.2) -> JudgeNet:
    """Cosine softmax over all subjects plus cross entropy over styles, AdamW with a one-cycle over CPU time.

    decoded: the same pictures after the autoencoder, one half of each batch.
    """
    torch.manual_seed(7)
    net = JudgeNet(len(pictures.style_names)).train().to(memory_format=torch.channels_last)
    prototypes = nn.Parameter(torch.randn(len(pictures.subject_names), net.subject.out_features))
    optimiser = torch.optim.AdamW([*net.parameters(), prototypes], lr=3e-3, weight_decay=0.05)
    chosen = torch.nonzero(split(pictures)[0])[:, 0]
    start, step = time.process_time(), 0
    while (done := (time.process_time() - start) / (60 * minutes)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1.0, done / 0.05 + 0.02, (1 - done) / 0.6)
        rows = chosen[torch.randint(len(chosen), (batch,))]
        as_seen = (torch.rand(batch) < 0.5)[:, None, None, None]
        images = torch.where(as_seen, decoded[rows], pictures.images[rows]).float() / 255
        images = soften(crop(images, (0.85, 1.15)))
        with autocast():
            embedding, style = net(images.contiguous(memory_format=torch.channels_last))
        cosine = functional.normalize(embedding.float(), dim=1) @ functional.normalize(prototypes, dim=1).T
        cosine = cosine - margin * functional.one_hot(pictures.subject[rows], cosine.shape[1])
        subject_loss = functional.cross_entropy(cosine * 16, pictures.subject[rows])
        loss = subject_loss + 0.5 * functional.cross_entropy(style.float(), pictures.style[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step += 1
        if step % 100 == 0:
            print(f"{done:4.0%} step {step} subject {subject_loss.item():.2f} loss {loss.item():.2f}", flush=True)
    return net.eval()


def report(net: JudgeNet, pictures: Pictures, decoded: Tensor, table: Tensor) -> None:
    """Print what the judge gets right on pictures it never saw."""
    _, left_out, tested = split(pictures)
    for what, images in (("", soften(pictures.images.float() / 255)), (", decoded", decoded.float() / 255)):
        for name, mask in (("left-out pictures", left_out), ("held-out subjects x held-out styles", tested)):
            with torch.inference_mode():
                _, style = net(images[mask])
            right = (style.argmax(dim=1) == pictures.style[mask]).float()
            print(f"style of {name}{what}: {right.mean():.3f} of {int(mask.sum())}")
            each = {n: right[pictures.style[mask] == i] for i, n in enumerate(pictures.style_names)}
            print("   " + ", ".join(f"{n} {r.mean():.2f}" for n, r in each.items() if len(r)))
    # Across styles, since within one the picture is its own nearest: the true drawing must be found among 24 by
    # the same subject's drawing in another style.
    for style in pictures.holdout_styles:
        known = table[:, pictures.style_names.index(style)]
        other = table[:, pictures.style_names.index("noto")]
        right = ((other @ known.T).argmax(dim=1) == torch.arange(len(known))).float().mean()
        mask = pictures.where(pictures.holdout_subjects, [style])
        with torch.inference_mode():
            embedding, _ = net(soften(crop(pictures.images[mask].float() / 255, (0.9, 1.1))))
        wanted = [pictures.holdout_subjects.index(pictures.subject_names[i]) for i in pictures.subject[mask]]
        again = ((functional.normalize(embedding, dim=1) @ known.T).argmax(dim=1) == torch.tensor(wanted)).float()
        print(f"subject in {style}: from its noto drawing {right:.3f}, from its own, disturbed {again.mean():.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, required=True, help="folder with emoji64.npz and emoji_tokens.json")
    parser.add_argument("--minutes", type=float, default=14.0, help="of CPU time")
    parser.add_argument("--out", type=Path, default=JUDGE_FILE)
    arguments = parser.parse_args()
    pictures = load_pictures(arguments.world)
    enter_host()
    decoded = through_autoencoder(pictures, SmallWorld(arguments.world))
    net = train(pictures, decoded, arguments.minutes)
    table = references(net, pictures)
    report(net, pictures, decoded, table)
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    names = json.dumps({"subjects": pictures.holdout_subjects, "styles": pictures.style_names})
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.contiguous() for k, v in {**tensors, "references": table.half()}.items()},
        arguments.out,
        {METADATA_KEY: names},
    )
    print(f"{arguments.out} {arguments.out.stat().st_size / 2**20:.1f} MB")


if __name__ == "__main__":
    main()
