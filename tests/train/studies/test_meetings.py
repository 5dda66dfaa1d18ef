from __future__ import annotations

import itertools
from types import SimpleNamespace

import torch

from negbank.train.studies.meetings import Meetings


def begun(rows, labels=None):
    """Meetings of a run with so many training rows."""

    class Rows:
        def __len__(self):
            return rows

    data, meetings = Rows(), Meetings()
    data.labels = labels
    meetings.begin(
        SimpleNamespace(splits=SimpleNamespace(train=data), trainer=SimpleNamespace(device=torch.device("cpu")))
    )
    return meetings


def test_shares_of_pairs_against_counting_them():
    labels = torch.tensor([0, 0, 1, 1, 1, -1, 2, 0, 1, 2])
    meetings, last = begun(10, labels), {}
    generator = torch.Generator().manual_seed(0)
    for batch in range(40):
        rows = torch.randperm(10, generator=generator)[:4].tolist()
        found = meetings.metrics(torch.tensor(rows))
        pairs = list(itertools.combinations(rows, 2))
        if all(row in last for row in rows):
            assert found["overlap"] == sum(last[a] == last[b] for a, b in pairs) / len(pairs)
        else:
            assert "overlap" not in found
        known = [(a, b) for a, b in pairs if labels[a] >= 0 and labels[b] >= 0]
        assert found["false_negative_rate"] == sum(bool(labels[a] == labels[b]) for a, b in known) / len(known)
        last |= dict.fromkeys(rows, batch)


def test_it_resumes():
    first = begun(6)
    first.metrics(torch.tensor([0, 1, 2]))
    first.metrics(torch.tensor([3, 4, 5]))
    second = begun(6)
    second.load_state_dict(first.state_dict())
    assert first.metrics(torch.tensor([0, 1, 3])) == second.metrics(torch.tensor([0, 1, 3])) == {"overlap": 1 / 3}


def test_without_labels_nothing_is_said_of_classes():
    assert begun(4, torch.full((4,), -1)).metrics(torch.tensor([0, 1])) == {}
