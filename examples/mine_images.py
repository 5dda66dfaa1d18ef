"""The hardest negatives of the images in a folder, by a torchvision encoder, on one HTML page.

python examples/mine_images.py FOLDER [--out page.html] [--weights default|none|FILE] [--anchors 24] [--negatives 8]

Two images are never negatives of each other where they lie in subfolders of one name (the class; a flat folder has no
classes) or are near-duplicates. `default` has torchvision download ResNet-18 trained on ImageNet; FILE is a state dict
of your own; `none` is an untrained network, whose features see colour and layout.
"""

import argparse
import base64
import html
import io
from pathlib import Path

import torch
import torchvision
from PIL import Image

import negbank

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Hard negatives</title>
<style>
body {{ font: 14px system-ui, sans-serif; margin: 2em; color: #222 }}
.row {{ display: flex; gap: 8px; align-items: flex-start; margin-bottom: 14px }}
figure {{ margin: 0; width: 96px }} img {{ width: 96px; height: 96px; object-fit: cover; border-radius: 4px }}
.anchor {{ padding-right: 16px; border-right: 2px solid #2c7a3f }}
figcaption {{ font-size: 11px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }}
pre {{ font-size: 12px }}
</style>
<h1>Hard negatives</h1><p>Left, an anchor; then the images most like it that are not of its class.</p>
{rows}<pre>{summary}</pre></html>
"""


def encoder(weights: str) -> torch.nn.Module:
    """ResNet-18 up to its pooled features, in evaluation mode."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights="DEFAULT" if weights == "default" else None)
    if weights not in ("default", "none"):
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    network.fc = torch.nn.Identity()
    return network.eval()


@torch.inference_mode()
def embed(paths: list[Path], network: torch.nn.Module, size: int, batch: int = 64) -> torch.Tensor:
    """Features (n, 512), centred over the images, so that what all share does not count as similar."""
    normalise = torchvision.models.ResNet18_Weights.DEFAULT.transforms(crop_size=size, resize_size=size)
    found = []
    for at in range(0, len(paths), batch):
        images = [normalise(Image.open(path).convert("RGB")) for path in paths[at : at + batch]]
        found.append(network(torch.stack(images)))
    features = torch.cat(found)
    return features - features.mean(0)


def figure(path: Path, caption: str, anchor: bool = False) -> str:
    """An image, inlined at thumbnail size."""
    thumbnail, buffer = Image.open(path).convert("RGB"), io.BytesIO()
    thumbnail.thumbnail((192, 192))
    thumbnail.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    told = html.escape(caption)
    kind = ' class="anchor"' if anchor else ""
    return (
        f'<figure{kind}><img src="data:image/jpeg;base64,{data}" alt="{told}"><figcaption>{told}</figcaption></figure>'
    )


def main(
    folder: Path, out: Path, weights: str = "default", anchors: int = 24, negatives: int = 8, size: int = 128
) -> negbank.MiningResult:
    """Mine within the folder and write the page."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(paths) < 2:
        raise SystemExit(f"{folder}: {len(paths)} image(s); expected a folder of {', '.join(sorted(SUFFIXES))}")
    flat = all(path.parent == folder for path in paths)
    classes = [path.parent.name for path in paths]
    result = negbank.mine_hard_negatives(
        None,
        embed(paths, encoder(weights), size),
        groups=None if flat else classes,
        num_negatives=negatives,
        dedupe="near",
        near=0.98,
    )
    rows = []
    for i in range(0, len(paths), max(1, len(paths) // anchors)):
        shown = [figure(paths[i], paths[i].name if flat else classes[i], anchor=True)]
        for j, score in zip(*result[i]):
            shown.append(figure(paths[j], f"{score:.2f} {paths[j].name if flat else classes[j]}"))
        rows.append(f'<div class="row">{"".join(shown)}</div>\n')
    out.write_text(PAGE.format(rows="".join(rows[:anchors]), summary=html.escape(result.summary())), encoding="utf-8")
    print(f"{result.summary()}\nwritten to {out}")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("negatives.html"))
    parser.add_argument("--weights", default="default")
    parser.add_argument("--anchors", type=int, default=24)
    parser.add_argument("--negatives", type=int, default=8)
    parser.add_argument("--size", type=int, default=128, help="pixels that images are scaled to")
    options = parser.parse_args()
    main(options.folder, options.out, options.weights, options.anchors, options.negatives, options.size)
