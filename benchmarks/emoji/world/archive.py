"""Draw the small world's pictures from ten open emoji sets (two minutes, 30 MB from npm).

    python -m benchmarks.emoji.world.archive --out FOLDER [--like OTHER/emoji64.npz]

writes ``emoji64.npz``: images [N, 64, 64, 3] uint8 on white, subject and style [N], and the names, code points and
categories of the subjects; and beside it who is held out and what the words are (``vocabulary.py``). Every SVG is drawn
160 px wide, cropped to what is painted, squared, scaled to 60 px (Lanczos) and given a border of 2 px. --like prints
how far the pictures are from those of another archive.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from . import vocabulary
from .emoji_sets import SETS, SetError, fetch, match, read_set
from .files import ARCHIVE

DRAWN, INNER, SIDE = 160, 60, 64
FAINT = 8  # of 255: shadows that fade out do not belong to what is painted


def draw(svg: str) -> np.ndarray:
    """An SVG as a picture [64, 64, 3] uint8 on white. Raises ValueError if it paints nothing."""
    import resvg_py

    drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=DRAWN, skip_system_fonts=True))))
    drawn = drawn.convert("RGBA")
    box = drawn.getchannel("A").point(lambda alpha: 255 * (alpha > FAINT)).getbbox()
    if box is None:
        raise ValueError("the SVG paints nothing")
    drawn = drawn.crop(box)
    side = max(drawn.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
    small = square.convert("RGB").resize((INNER, INNER), Image.Resampling.LANCZOS)
    ground = Image.new("RGB", (SIDE, SIDE), "white")
    ground.paste(small, ((SIDE - INNER) // 2, (SIDE - INNER) // 2))
    return np.asarray(ground)


def build(folder: Path, only: Sequence[str] | None = None) -> Path:
    """Write the archive into the folder and return its path. only: names of the subjects, for all of them None.

    Raises SetError if the sets cannot be had.
    """
    sets = {name: read_set(file) for name, file in fetch(folder / "sets").items()}
    subjects = [pair for pair in match(sets) if only is None or pair[0].name in only]
    images, subject_rows, style_rows, start = [], [], [], time.monotonic()
    for i, (_, drawn) in enumerate(subjects):
        for style, name in enumerate(SETS):
            if name in drawn:
                images.append(draw(sets[name].svg(drawn[name])))
                subject_rows.append(i)
                style_rows.append(style)
        if i % 200 == 199:
            print(f"  {i + 1} of {len(subjects)} subjects, {time.monotonic() - start:.0f} s", flush=True)
    file, partial = folder / ARCHIVE, folder / f"partial-{ARCHIVE}"
    np.savez_compressed(
        partial,
        images=np.stack(images),
        subject=np.array(subject_rows, dtype=np.int32),
        style=np.array(style_rows, dtype=np.int32),
        subject_names=np.array([subject.name for subject, _ in subjects]),
        subject_cp=np.array([subject.code_point for subject, _ in subjects]),
        subject_cat=np.array([subject.category for subject, _ in subjects]),
        style_names=np.array(list(SETS)),
    )
    partial.replace(file)
    print(f"  {len(images)} pictures of {len(subjects)} subjects in {len(SETS)} styles", flush=True)
    return file


def difference(file: Path, other: Path) -> str:
    """What two archives have in common, in words, and the mean difference of a pixel, 0 to 255."""
    mine, theirs = _pictures(file), _pictures(other)
    both = sorted(mine.keys() & theirs.keys())
    gaps = [float(np.abs(mine[key].astype(int) - theirs[key].astype(int)).mean()) for key in both]
    worst = ", ".join(f"{'/'.join(both[i])} {gaps[i]:.1f}" for i in np.argsort(gaps)[::-1][:5])
    only = [sorted("/".join(key) for key in a.keys() - b.keys()) for a, b in ((mine, theirs), (theirs, mine))]
    return (
        f"{len(both)} pictures in both, {len(only[0])} only here {only[0][:10]}, {len(only[1])} only there "
        f"{only[1][:10]}; a pixel differs by {np.mean(gaps):.3f} of 255 on average (median picture "
        f"{np.median(gaps):.3f}), most in {worst}"
    )


def _pictures(file: Path) -> dict[tuple[str, str], np.ndarray]:
    with np.load(file, allow_pickle=False) as archive:
        names, styles = archive["subject_names"].tolist(), archive["style_names"].tolist()
        rows = zip(archive["subject"].tolist(), archive["style"].tolist(), archive["images"], strict=True)
        return {(names[subject], styles[style]): image for subject, style, image in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--others", type=int, help="draw the held-out subjects and so many others; default: all")
    parser.add_argument("--like", type=Path, help="another emoji64.npz to compare with")
    options = parser.parse_args()
    splits = vocabulary.read_splits()
    few = None if options.others is None else splits["style_lora_subjects"][: options.others]
    try:
        file = build(options.out, None if few is None else splits["holdout_subjects"] + few)
    except SetError as error:
        raise SystemExit(f"error: {error}") from None
    vocabulary.write(options.out)
    if options.like:
        print(difference(file, options.like))


if __name__ == "__main__":
    main()
