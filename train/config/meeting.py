"""Whether negatives can be trained on batches: what they ask of which rows meet, and what to take where they cannot.

Negatives that take the batch for uniform draws (`requires = "uniform"`), or weigh rows by how often they meet
("known"), need batches of which that holds. A configuration is asked before anything is loaded (`sections`), and the
objects that were made of it once more by `negbank.train.towers`.
"""

from __future__ import annotations

from typing import Any

REQUIRES = {
    "sogclr": lambda section: "uniform",
    "isogclr": lambda section: "uniform",
    "emc2": lambda section: "any" if section.proposals == "index" else "uniform",
    "importance": lambda section: "known" if section.batch else "any",
}
"""What the negatives of a section require; those that are not here take any batches."""
UNIFORM, KNOWN = ("uniform",), ("uniform", "drawn")
"""Batches whose rows are uniform, and of which it is known how often they meet, without a bound on groups."""
ELSE = {
    "emc2": "negatives.proposals=index",
    "importance": "negatives.batch=false",
}
"""What an option of the negatives themselves changes."""


def sections(batches: Any, negatives: Any) -> str | None:
    """What is wrong with these two sections of a run together, or None. Names of other packages are not judged here."""
    from negbank.train import registry

    if not all(isinstance(registry.REGISTRY[kind].get(each.type), str)
               for kind, each in (("batches", batches), ("negatives", negatives))):  # fmt: skip
        return None
    requires = REQUIRES.get(negatives.type, lambda section: "any")(negatives)
    bounded = None not in (getattr(batches, "groups", None), getattr(batches, "max_per_group", None))
    uniform = batches.type in UNIFORM and not bounded
    return misfit(negatives.type, requires, batches.type, uniform=uniform, known=uniform or batches.type in KNOWN[1:])


def misfit(negatives: str, requires: str, batches: str, *, uniform: bool, known: bool) -> str | None:
    """What is wrong with negatives that require this of such batches, and what to take instead; None if nothing is."""
    if requires == "any" or (requires == "uniform" and uniform) or (requires == "known" and known):
        return None
    why = {
        "uniform": f"takes the batch's rows for uniform draws, which those of {batches} are not",
        "known": f"weighs rows by how often they meet, which is not known of {batches} batches",
    }[requires]
    these = "batches.type=uniform without batches.groups" + " or batches.type=drawn" * (requires == "known")
    own = f", {ELSE[negatives]}" if negatives in ELSE else ""
    any_ = "in_batch, mined, dcl, hcl, moco, hardest"
    return f"{negatives} {why}; take {these}{own}, or negatives for any batch ({any_})"
