"""Draws docs/step.svg: one training step, each box in the colour of the folder that it lives in.

python docs/draw_step.py
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import NamedTuple

COLOURS = {"negbank": "#dbe9ff", "samplers": "#dcf5e1", "train": "#ffeeda"}
WIDTH, HEIGHT, BOX = 1040, 565, 62


class Box(NamedTuple):
    """A box at x, y, so wide, of a folder, with a name and what it does."""

    x: int
    y: int
    width: int
    folder: str
    name: str
    text: str


BOXES = {
    "batches": Box(20, 90, 170, "samplers", "batches", "which rows meet: (B,)"),
    "read": Box(250, 90, 200, "train", "data.read", "one view of each input"),
    "encoder": Box(510, 90, 200, "train", "encoder", "one pass, or in pieces"),
    "batch": Box(770, 90, 250, "samplers", "EncodedBatch", "anchors, positives, candidates"),
    "draw": Box(250, 230, 200, "samplers", "negatives.draw", "rows to encode: a Ticket"),
    "call": Box(770, 230, 250, "samplers", "negatives(batch, ticket)", "scores s, weights w"),
    "proposal": Box(250, 350, 200, "negbank", "proposal", "q(j), exact and with a floor"),
    "loss": Box(770, 350, 250, "train", "surrogate", "mean β Σ w (s − s⁺)"),
    "snapshot": Box(250, 470, 200, "negbank", "snapshot + index", "frozen, swapped at a step"),
    "refresher": Box(20, 470, 170, "negbank", "refresher", "due? build, validate"),
    "bank": Box(510, 470, 200, "negbank", "bank", "written once a step"),
    "optim": Box(770, 470, 250, "train", "optimiser", "one descent, checked finite"),
}
ARROWS = [
    ("batches", "read", "rows"), ("read", "encoder", "inputs"),
    ("encoder", "batch", "z"),
    ("batch", "call", ""), ("call", "loss", ""), ("loss", "optim", ""), ("draw", "read", "drawn rows"),
    ("proposal", "draw", "ids, log q"), ("snapshot", "proposal", "top k, cells"), ("refresher", "snapshot", ""),
    ("encoder", "bank", "rows, detached"), ("refresher", "batches", "update"), ("draw", "call", ""),
]  # fmt: skip
LONG = {("encoder", "bank"): "M 610 152 L 610 470", ("refresher", "batches"): "M 105 470 L 105 152"}
UNDER = "M 610 532 L 610 550 L 105 550 L 105 534"
"""From the bank back to the refresher, below the others."""


def path(start: Box, end: Box) -> str:
    """A straight arrow between the facing sides of two boxes."""
    if start.y == end.y:
        right = start.x < end.x
        y = start.y + BOX // 2
        return f"M {start.x + start.width * right} {y} L {end.x + end.width * (not right)} {y}"
    down = start.y < end.y
    middle = max(start.x, end.x) + min(start.width, end.width) // 2
    return f"M {middle} {start.y + BOX * down} L {middle} {end.y + BOX * (not down)}"


def svg() -> str:
    """The picture."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" role="img" '
        f'aria-label="One training step: batches choose rows, data are read, encoded once, contrasted, descended">',
        '<defs><marker id="tip" markerWidth="9" markerHeight="9" refX="7" refY="3" orient="auto">'
        '<path d="M0,0 L7,3 L0,6 z" fill="#555"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for nth, (folder, colour) in enumerate(COLOURS.items()):
        x = 20 + 150 * nth
        parts.append(f'<rect x="{x}" y="22" width="18" height="18" rx="4" fill="{colour}" stroke="#999"/>')
        parts.append(f'<text x="{x + 26}" y="36" font-size="15">{folder}/</text>')
    parts.append(
        '<text x="510" y="36" font-size="14" fill="#555">every draw is a function of (seed, stream, step, slot)</text>'
    )
    parts.append(f'<path d="{UNDER}" stroke="#555" stroke-width="1.6" fill="none" marker-end="url(#tip)"/>')
    for start, end, text in ARROWS:
        line = LONG.get((start, end)) or path(BOXES[start], BOXES[end])
        parts.append(f'<path d="{line}" stroke="#555" stroke-width="1.6" fill="none" marker-end="url(#tip)"/>')
        _, x0, y0, _, x1, y1 = line.split()
        x, y = (int(x0) + int(x1)) / 2, (int(y0) + int(y1)) / 2
        flat = y0 == y1
        anchor = 'text-anchor="middle"' if flat else ""
        parts.append(
            f'<text x="{x if flat else x + 8}" y="{y - 7 if flat else y + 4}" {anchor} font-size="12" fill="#555">'
            f"{escape(text)}</text>"
        )
    for box in BOXES.values():
        parts.append(
            f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{BOX}" rx="8" fill="{COLOURS[box.folder]}" '
            f'stroke="#888"/><text x="{box.x + box.width / 2}" y="{box.y + 26}" text-anchor="middle" font-size="16" '
            f'font-weight="bold">{escape(box.name)}</text><text x="{box.x + box.width / 2}" y="{box.y + 47}" '
            f'text-anchor="middle" font-size="12.5">{escape(box.text)}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    Path(__file__).with_name("step.svg").write_text(svg(), encoding="utf-8")
