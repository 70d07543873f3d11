"""The small world's judge: is this picture that subject, in that style?

A small residual CNN, another network from other data than the guidance encoders: it has seen held-out subjects (in the
other styles) and held-out styles (of other subjects), only never a pair that is tested. Subject = nearest, by cosine,
of the 24 held-out subjects' true pictures in that style; style = 16-way; both = both right on the same picture.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from repo_paths import ASSETS

from ..world.files import JUDGE
from ..world.splits import SUBJECT_STYLES

JUDGE_FILE = ASSETS / "judge" / JUDGE
METADATA_KEY = "emoji_judge"


class Residual(nn.Module):
    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(width_in, width_out, 3, 2, 1, bias=False), nn.BatchNorm2d(width_out))
        self.b = nn.Sequential(nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False), nn.BatchNorm2d(width_out))
        self.skip = nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.b(functional.relu(self.a(x))) + self.skip(functional.avg_pool2d(x, 2)))


class JudgeNet(nn.Module):
    """images [B, 3, 64, 64] in [0, 1] -> (subject embedding [B, 128], style logits [B, styles])."""

    def __init__(self, styles: int, widths: tuple[int, ...] = (32, 64, 128, 192), embedding: int = 128) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, widths[0], 5, 2, 2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        blocks = [Residual(a, b) for a, b in zip(widths, widths[1:], strict=False)]
        self.trunk = nn.Sequential(stem, *blocks)
        # Where things are tells subjects apart, so the 4 x 4 grid is kept; style is what is everywhere.
        self.subject = nn.Linear(widths[-1] * 16, embedding)
        self.style = nn.Linear(widths[1] + widths[-1], styles)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        early = self.trunk[:2](images * 2 - 1)
        late = self.trunk[2:](early)
        everywhere = torch.cat([early.mean(dim=(2, 3)), late.mean(dim=(2, 3))], dim=1)
        return self.subject(late.flatten(1)), self.style(everywhere)


@dataclass(frozen=True)
class Judge:
    """references [subjects, styles, 128]: unit embeddings of the held-out subjects' true pictures; NaN: no picture."""

    net: JudgeNet
    references: Tensor
    subjects: list[str]
    styles: list[str]

    @classmethod
    def load(cls, path: Path = JUDGE_FILE) -> Judge:
        """Read the judge from its file."""
        with safe_open(path, framework="pt") as file:
            names = json.loads(file.metadata()[METADATA_KEY])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        references = tensors.pop("references").float()
        net = JudgeNet(len(names["styles"])).eval().requires_grad_(False)
        net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
        return cls(net, references, names["subjects"], names["styles"])

    def features(self, images: Tensor) -> Tensor:
        """What the judge sees of the subject: unit vectors [N, 128] of images [N, 3, 64, 64] in [0, 1]."""
        with torch.inference_mode():
            return functional.normalize(self.net(images.float())[0], dim=1)

    def probabilities(self, images: Tensor, style: str, temperature: float = 0.1) -> tuple[Tensor, Tensor]:
        """Softer than right or wrong: (softmax over the subjects [N, 24], over the styles [N, 16])."""
        with torch.inference_mode():
            _, logits = self.net(images.float())
            known = self.references[:, self.styles.index(style)]
            cosine = self.features(images) @ known.nan_to_num(0.0).T
            cosine[:, known.isnan().any(dim=1)] = -1.0
        return (cosine / temperature).softmax(dim=1), logits.softmax(dim=1)

    def score(self, images: Tensor, subject_names: list[str] | str, style_name: str) -> dict[str, Tensor]:
        """Judge pictures that should show the subjects in the style.

        images: [N, 3, 64, 64] in [0, 1]. subject_names: one for each picture, or one for all; of the 24 held-out ones.
        Returns boolean tensors [N]: subject_ok, style_ok, both; and their probabilities subject_p, style_p. Also
        training_look, whether the style is one of those in which the subject LoRA's pictures were drawn; and distance,
        one minus the cosine between the picture's subject features and those of the true picture, 0 to 2.
        """
        if isinstance(subject_names, str):
            subject_names = [subject_names] * len(images)
        wanted = torch.tensor([self.subjects.index(name) for name in subject_names])
        subject_p, style_p = self.probabilities(images, style_name)
        true = self.references[wanted, self.styles.index(style_name)]
        looks = torch.tensor([self.styles.index(name) for name in SUBJECT_STYLES])
        subject_ok = subject_p.argmax(dim=1) == wanted
        style_ok = style_p.argmax(dim=1) == self.styles.index(style_name)
        return {
            "subject_ok": subject_ok,
            "style_ok": style_ok,
            "both": subject_ok & style_ok,
            "subject_p": subject_p.gather(1, wanted[:, None])[:, 0],
            "style_p": style_p[:, self.styles.index(style_name)],
            "training_look": torch.isin(style_p.argmax(dim=1), looks),
            "distance": 1 - (self.features(images) * true).sum(dim=1),
        }
