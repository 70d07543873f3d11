"""Train the small world's two guidance encoders (8 minutes of one CPU core each).

    python -m benchmarks.emoji.world.encoders clip --world FOLDER_WITH_emoji64.npz
    python -m benchmarks.emoji.world.encoders dino --world FOLDER_WITH_emoji64.npz

clip: an open_clip ResNet against captions "subject, style" (Radford et al. 2021). dino: a timm ResNet by
self-distillation with an EMA teacher, multi-crop and Sinkhorn centring (Caron et al. 2021, Oquab et al. 2023); half of
a picture's second views come from another style's drawing of the subject, which stands in for the web-scale data that
teaches a real DINO what stays the same across renderings. Held-out subjects and styles are never seen by either.
The files describe themselves (`lora_conductor.encoder` in their metadata), so the pack's loader can rebuild them.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

import torchvision_shim
from repo_paths import ASSETS

from . import files
from .augment import crop, soften
from .pictures import Pictures, load_pictures
from .precision import autocast

CLIP_CONFIG = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": [1, 2, 2, 1], "width": 16, "patch_size": None, "head_width": 64},
}
DINO_CONFIG = {
    "name": "resnet18",
    "kwargs": {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 192], "stem_type": "deep", "stem_width": 16},
}
MEAN, STD = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]


def pixels(images: Tensor) -> Tensor:
    """[0, 1] -> what the networks read, in the layout that is fast on a CPU."""
    return ((images - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)


def clock(minutes: float) -> Iterator[float]:
    """The share of the time that is over, until it is; CPU time, so that a busy machine trains no less."""
    start = time.process_time()
    while (done := (time.process_time() - start) / (60 * minutes)) < 1:
        yield done


def set_rate(optimiser: torch.optim.Optimizer, peak: float, done: float) -> None:
    """Short linear warm-up, then linear decay."""
    for group in optimiser.param_groups:
        group["lr"] = peak * min(1.0, done / 0.05 + 0.02, (1 - done) / 0.7)


def training_rows(pictures: Pictures) -> dict[int, Tensor]:
    """Indices of the training pictures by subject: nothing of held-out subjects, nothing in held-out styles."""
    held_styles = torch.tensor([pictures.style_names.index(name) for name in pictures.holdout_styles])
    allowed = ~pictures.where(pictures.holdout_subjects) & ~torch.isin(pictures.style, held_styles)
    rows: dict[int, list[int]] = {}
    for row in torch.nonzero(allowed)[:, 0].tolist():
        rows.setdefault(int(pictures.subject[row]), []).append(row)
    return {subject: torch.tensor(found) for subject, found in rows.items() if len(found) > 1}


def colour(images: Tensor, strength: float = 0.5) -> Tensor:
    """Random grey, channel mixing and contrast per sample; the ground stays white."""
    batch = images.shape[0]
    ink = 1 - images
    grey = ink.mean(dim=1, keepdim=True).expand_as(ink)
    share = (torch.rand(batch, 1, 1, 1) < 0.4).float() * torch.rand(batch, 1, 1, 1).sqrt()
    ink = ink * (1 - share) + grey * share
    gain = 1 + strength * (torch.rand(batch, 3, 1, 1) - 0.5) + strength * (torch.rand(batch, 1, 1, 1) - 0.5)
    return (1 - ink * gain).clamp(0, 1)


# CLIP: pictures against captions


class Captions:
    """Word-level tokens of "subject words, style": [<words> ... <style> <end> 0 ...], 8 of them."""

    def __init__(self, pictures: Pictures, length: int = 8) -> None:
        split = [name.split("-") for name in pictures.subject_names]
        words = sorted({word for name in split for word in name})
        index = {word: i + 1 for i, word in enumerate(words)}
        self.size = len(words) + len(pictures.style_names) + 2
        self.table = torch.zeros(len(split), len(pictures.style_names), length, dtype=torch.long)
        for s, name in enumerate(split):
            ids = [index[word] for word in name][: length - 2]
            for t in range(len(pictures.style_names)):
                # open_clip pools the text at its largest token, which has to be the end token.
                caption = [*ids, len(words) + 1 + t, self.size - 1]
                self.table[s, t, : len(caption)] = torch.tensor(caption)


def train_clip(pictures: Pictures, minutes: float) -> nn.Module:
    """Contrastive training; returns the visual tower."""
    import open_clip

    captions = Captions(pictures)
    text = {"context_length": 8, "vocab_size": captions.size, "width": 128, "heads": 2, "layers": 2}
    model = open_clip.CLIP(CLIP_CONFIG["embed_dim"], CLIP_CONFIG["vision_cfg"], text).train()
    model.visual.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    rows = training_rows(pictures)
    subjects = list(rows)
    for step, done in enumerate(clock(minutes)):
        set_rate(optimiser, 1.5e-3, done)
        # Four styles of each subject in a batch: the style must be told as well as the subject.
        some = [rows[subjects[i]] for i in torch.randperm(len(subjects))[:32]]
        batch = torch.cat([found[torch.randperm(len(found))[:4]] for found in some])
        images = soften(crop(pictures.images[batch].float() / 255, (0.85, 1.15)))
        tokens = captions.table[pictures.subject[batch], pictures.style[batch]]
        with autocast():
            image, words, scale = model(pixels(images), tokens)[:3]
        logits = scale * image.float() @ words.float().T
        target = torch.arange(len(batch))
        loss = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.0)
        if step % 100 == 0:
            print(f"clip {done:4.0%} step {step} loss {loss.item():.3f}", flush=True)
    return model.visual.eval()


# DINO: a student that must say what its slowly following teacher says of another view


class DinoHead(nn.Module):
    """Features -> prototype logits; features and prototypes are compared by angle."""

    def __init__(self, width: int, prototypes: int = 512) -> None:
        super().__init__()
        # Normalised over the batch: fresh features all point the same way, and without it every picture would be told
        # to be like every other from the start.
        self.mlp = nn.Sequential(
            nn.Linear(width, 384, bias=False),
            nn.BatchNorm1d(384),
            nn.GELU(),
            nn.Linear(384, 96, bias=False),
            nn.BatchNorm1d(96, affine=False),
        )
        self.prototypes = nn.Parameter(torch.randn(prototypes, 96))

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(self.mlp(x), dim=1) @ functional.normalize(self.prototypes, dim=1).T


def sinkhorn(logits: Tensor, temperature: float = 0.05) -> Tensor:
    """Teacher's targets [B, K]: rows add to 1 and every prototype is used equally often."""
    q = (logits.float() / temperature - logits.max() / temperature).exp()
    for _ in range(3):
        q = q / q.sum(dim=0, keepdim=True).clamp_min(1e-8) / q.shape[1]
        q = q / q.sum(dim=1, keepdim=True).clamp_min(1e-8)
    return q


def train_dino(pictures: Pictures, minutes: float, batch: int = 64, other_style: float = 0.5) -> nn.Module:
    """Self-distillation with two global and three local views; returns the teacher's backbone."""
    import timm

    torch.manual_seed(3)
    backbone = timm.create_model(DINO_CONFIG["name"], num_classes=0, **DINO_CONFIG["kwargs"])
    student = nn.Sequential(backbone, DinoHead(backbone.num_features)).train().to(memory_format=torch.channels_last)
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimiser = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], weight_decay=0.05)
    rows = training_rows(pictures)
    subjects = list(rows)
    for step, done in enumerate(clock(minutes)):
        set_rate(optimiser, 2e-3, done)
        first, second = [], []
        for i in torch.randperm(len(subjects))[:batch].tolist():
            a, b = rows[subjects[i]][torch.randperm(len(rows[subjects[i]]))[:2]].tolist()
            first.append(a)
            second.append(b if torch.rand(()) < other_style else a)
        views = [pictures.images[chosen].float() / 255 for chosen in (first, second)]
        large = pixels(torch.cat([soften(colour(crop(v, (0.75, 1.15)))) for v in views]))
        small = pixels(torch.cat([colour(crop(v, (0.4, 0.7), size=32)) for v in (*views, views[0])]))
        with autocast():
            with torch.no_grad():
                targets = sinkhorn(teacher(large)).chunk(2)
            outputs = [*student(large).chunk(2), *student(small).chunk(3)]
        terms = [
            -(target * functional.log_softmax(output.float() / 0.1, dim=1)).sum(dim=1).mean()
            for t, target in enumerate(targets)
            for o, output in enumerate(outputs)
            if o != t
        ]
        loss = torch.stack(terms).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 3.0)
        optimiser.step()
        keep = 0.99 - 0.02 * (1 - done) ** 2
        with torch.no_grad():
            for old, new in zip(teacher.state_dict().values(), student.state_dict().values(), strict=True):
                old.lerp_(new, 1 - keep) if old.is_floating_point() else old.copy_(new)
        if step % 100 == 0:
            print(f"dino {done:4.0%} step {step} loss {loss.item():.3f}", flush=True)
    return teacher[0].eval()


# What they are good for


def embed(network: nn.Module, images: Tensor) -> Tensor:
    """uint8 images [N, 3, 64, 64] -> unit embeddings [N, D]."""
    with torch.inference_mode():
        return functional.normalize(network(pixels(images.float() / 255)), dim=1)


def report(name: str, embeddings: Tensor, pictures: Pictures, mask: Tensor) -> None:
    """Print retrieval among the held-out subjects' pictures (chance: 1 in 24 for subjects, 1 in 10 for styles)."""
    subject, style = pictures.subject[mask], pictures.style[mask]
    similar = embeddings @ embeddings.T
    found: dict[str, list[float]] = {"known": [], "held-out": []}
    held = {pictures.style_names.index(s) for s in pictures.holdout_styles}
    for a in style.unique().tolist():
        for b in style.unique().tolist():
            queries, gallery = torch.nonzero(style == a)[:, 0], torch.nonzero(style == b)[:, 0]
            if a != b:
                nearest = gallery[similar[queries][:, gallery].argmax(dim=1)]
                kind = "held-out" if {a, b} & held else "known"
                found[kind].append(float((subject[nearest] == subject[queries]).float().mean()))
    others = similar.masked_fill(subject[:, None] == subject[None, :], -1).argmax(dim=1)
    same_style = style[others] == style
    in_held = torch.isin(style, torch.tensor(sorted(held)))
    print(
        f"{name}: subject across known styles {sum(found['known']) / len(found['known']):.2f}, to or from held-out "
        f"styles {sum(found['held-out']) / len(found['held-out']):.2f}; style of the nearest other subject: known "
        f"{same_style[~in_held].float().mean():.2f}, held-out {same_style[in_held].float().mean():.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["clip", "dino"])
    parser.add_argument("--world", type=Path, required=True, help="folder with emoji64.npz and emoji_tokens.json")
    parser.add_argument("--minutes", type=float, default=8.0, help="of CPU time")
    parser.add_argument("--out", type=Path, default=ASSETS / "clip_vision")
    arguments = parser.parse_args()
    torchvision_shim.install()
    torch.manual_seed(1)
    pictures = load_pictures(arguments.world)
    mask = pictures.where(pictures.holdout_subjects)
    train, library, config = {
        "clip": (train_clip, "open_clip", CLIP_CONFIG),
        "dino": (train_dino, "timm", DINO_CONFIG),
    }[arguments.kind]
    network = train(pictures, arguments.minutes)
    raw = pictures.images[mask].float().flatten(1) / 255
    report("pixels", functional.normalize(raw - raw.mean(dim=0), dim=1), pictures, mask)
    report(arguments.kind, embed(network, pictures.images[mask]), pictures, mask)
    prefix = "visual." if library == "open_clip" else ""
    weights = {
        prefix + key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in network.state_dict().items()
    }
    described = {
        "library": library,
        "role": arguments.kind,
        "config": config,
        "image_size": 64,
        "mean": MEAN,
        "std": STD,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / files.encoder(arguments.kind)
    save_file(weights, file, {"lora_conductor.encoder": json.dumps(described)})
    print(f"{file.name}: {file.stat().st_size / 2**20:.2f} MB")


if __name__ == "__main__":
    main()
