"""Random YAML against what it says: values as typed, aliases and references that expand to too much, resolvers."""

from __future__ import annotations

import os
import random

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from negbank.train.config import ConfigError, load, parse, to_dict
from negbank.train.config.reading import MOST_BYTES, MOST_DEPTH, MOST_VALUES, Typed, read_text

CASES = 250
ODD = """1e3 no ~ null yes on Off true False 010 0x1F 0o17 1_000 1:30 12:30:45 .inf -.Inf .nan 2024-01-01 1. .5 +7 -0
1e400 = << NO y n 0b101 1.5e-3 None nan inf""".split()  # noqa: SIM905


def words(count: int) -> list[str]:
    """Plain scalars, half of them of what YAML takes for numbers, dates, truth values or nothing."""
    choose = random.Random(0)
    made = (
        "".join(choose.choices("0123456789eE+-._:xob~nulNyesoftra", k=choose.randint(1, 7))) for _ in range(10 * count)
    )
    plain = [each for each in made if each[0] not in "-:" and not each.endswith(":")]
    return [*ODD, "9" * 5000, *plain[: count - len(ODD)]]


def test_text_is_what_was_typed():
    """A folder of any name that can be written without quotes has it; YAML's own reading is the wrong variant."""
    changed = 0
    for word in words(CASES):
        config, _ = parse(read_text(f"run:\n  steps: 3\n  dir: {word}\n"))
        assert config.run.dir == word
        assert parse({"run": {"steps": 3}}, [f"run.dir={word}"])[0].run.dir == word
        saved = yaml.safe_dump({"run": to_dict(config)["run"]})  # as config.yaml of a run has it
        assert parse(read_text(saved))[0].run == config.run
        if len(word) < 4000 and word not in ("=", "<<"):
            try:
                changed += yaml.safe_load(word) != word
            except ValueError:  # a date that is none
                changed += 1
    assert changed > 20


def outcome(data, overrides=()):
    """The configuration, or None and the problems."""
    try:
        return parse(data, overrides)[0], []
    except ConfigError as error:
        return None, error.problems


def number(word: str) -> float | None:
    """Python's own reading of a plain number, or None: no octal by a leading 0, no blanks, no underscores at an end."""
    try:
        if word.lstrip("+-")[:1] == "0" and word.lstrip("+-")[1:2].isdigit():
            return None
        return float(word) if len(word) <= 400 else None
    except ValueError:
        return None


def test_numbers_are_what_was_typed():
    """Whole numbers, and those with a point or an exponent, are Python's; anything else is no number."""
    choose = random.Random(1)
    for _ in range(CASES):
        word = "".join(choose.choices("0123456789.e+-", weights=[9] * 10 + [3, 2, 1, 1], k=choose.randint(1, 6)))
        if word[0] == "-" or "." in word[-1:] + word[:1]:
            continue
        expected = number(word)
        found, problems = outcome({"run": {"steps": 1}, "loss": read_text(f"temperature: {word}")})
        if problems:
            assert expected is None or expected <= 0 or expected == float("inf"), word
            assert problems[0].startswith("loss.temperature: ")
        else:
            assert found.loss.temperature == expected


values = st.recursive(
    st.sampled_from(["x", "1e3", "~", "no", "7", "${a}", "${b.c}", "$", "{}", "a b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=12,
)


@given(values)
def test_what_is_read_is_what_was_written(value):
    """Containers and text come back through YAML; quoted text is never a number."""
    text = yaml.safe_dump(value, default_style='"')
    assert read_text(text) == value
    assert "Typed" not in repr(type(read_text(text)))


@pytest.mark.parametrize("seed", range(CASES))
def test_what_aliases_expand_to_is_bounded(seed):
    """A few lines of aliases: refused where they make too many values, in no time; else read as yaml itself does."""
    choose = random.Random(seed)
    width, levels = choose.randint(1, 9), choose.randint(1, 30)
    rows = [f"a0: &a0 [{', '.join('x' * choose.randint(1, 3))}]"]
    for level in range(1, levels):
        parts = [f"*a{choose.randrange(level)}" if choose.random() < 0.2 else f"*a{level - 1}" for _ in range(width)]
        kind = choose.choice(["[{}]", "{{{}}}", "merge"])
        if kind == "[{}]":
            rows.append(f"a{level}: &a{level} [{', '.join(parts)}]")
        else:
            rows.append(f"a{level}: &a{level} {{{', '.join(f'k{i}: {part}' for i, part in enumerate(parts))}}}")
    text = "\n".join(rows)
    known = yaml.safe_load(text)  # shared, so small
    size, depth = {}, {}

    def measured(value) -> tuple[int, int]:
        if id(value) not in size:
            below = value.values() if isinstance(value, dict) else () if isinstance(value, str) else value
            inner = [measured(each) for each in below]
            size[id(value)] = 1 + sum(count for count, _ in inner)
            depth[id(value)] = 1 + max((below for _, below in inner), default=-1)
        return size[id(value)], depth[id(value)]

    count, below = measured(known)
    if count > MOST_VALUES or below > MOST_DEPTH:
        with pytest.raises(ValueError, match=r"aliases .* expand to more than"):
            read_text(text)
    else:
        assert read_text(text) == known


def test_references_reach_the_file_alone(monkeypatch):
    """Fragments of references and resolvers in any order, nested, split over keys: nothing of the environment."""
    monkeypatch.setenv("HOME", "leaked")
    monkeypatch.setenv("A", "leaked")
    choose, passed = random.Random(0), 0
    parts = ["${", "}", ":", "oc.env", "oc.env:HOME", "HOME", "run.device", "${run.device}", "${run.precision}", "oc.",
             "decode", "\\", "$", "{", ",", "'", "[", "]", "${data.path}", "${data.labels}", "${oc.env:A}"]  # fmt: skip

    def made() -> str:
        return "".join(choose.choices(parts, k=choose.randint(1, 8)))

    for _ in range(2 * CASES):
        data = {
            "run": {"steps": 1, "dir": made(), "device": choose.choice(["oc.env", made()]), "precision": "auto"},
            "data": {
                "type": "tensors",
                "path": choose.choice(["$", "${", "oc.env", made()]),
                "labels": choose.choice(["{oc.env:HOME}", ":HOME}", made()]),
            },
        }
        config, problems = outcome(data, choose.choice([(), [f"run.dir={made()}"]]))
        text = str(problems) if config is None else str(to_dict(config))
        assert "leaked" not in text
        assert config is None or "${" not in text
        passed += config is not None
    assert passed > 50


@pytest.mark.parametrize("seed", range(CASES))
def test_what_references_expand_to_is_bounded(seed):
    """Text and lists doubled and tripled by references, in circles or not: an answer, and soon."""
    choose = random.Random(seed)
    levels, circle, textual = choose.randint(1, 60), choose.random() < 0.3, choose.random() < 0.5
    data = {"r0": "x" * choose.randint(1, 20)}
    for level in range(1, levels):
        below = [
            f"${{r{choose.choice([level - 1, level - 1, choose.randrange(level)])}}}"
            for _ in range(choose.randint(1, 4))
        ]
        data[f"r{level}"] = "".join(below) if textual else below
    if circle:
        data["r0"] = f"${{r{choose.randrange(levels)}}}"
    with pytest.raises(ConfigError) as caught:
        parse({**data, "run": {"steps": 1, "dir": f"${{r{levels - 1}}}"}})
    assert all("no such key" in each or "refers" in each or "reference" in each or "is no text" in each
               for each in caught.value.problems), caught.value.problems  # fmt: skip
    if circle:
        assert any("refers to itself" in each or "expand" in each or "references long" in each
                   for each in caught.value.problems)  # fmt: skip


@pytest.mark.parametrize("seed", range(CASES))
def test_any_bytes_are_a_configuration_or_one_error(seed, tmp_path):
    """Random bytes, and a good file with bytes changed, cut or doubled."""
    choose = random.Random(seed)
    good = b"run: {steps: 3, dir: a}\nnegatives:\n  type: emc2\n  proposal: {k: 5}\nloss: {temperature: 0.1}\n"
    content = bytearray(good if seed % 2 else choose.randbytes(choose.randint(0, 60)))
    for _ in range(choose.randint(1, 6)):
        at = choose.randrange(len(content) + 1)
        content[at : at + choose.randint(0, 2)] = choose.choice(
            [
                choose.randbytes(2),
                b"\xff\xfe",
                b"\xef\xbb\xbf",
                b"\0",
                b"&a ",
                b"*a",
                b"!!x",
                b"<<: ",
                b"[" * 80,
                b"\t",
                b"{",
            ]
        )
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    try:
        load(path)
    except ConfigError as error:  # and nothing else
        said = str(error)
    else:
        return
    assert said.startswith(f"{path}: ")
    assert len(said.splitlines()) > 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 5000, f"more than {MOST_DEPTH} mappings and lists"),
        ("{a: " * 5000, f"more than {MOST_DEPTH} mappings and lists"),
        ("- " * 5000, f"more than {MOST_DEPTH} mappings and lists"),
        ("run: &a {steps: 1, dir: *a}", "expand to more than"),
        ("!!python/object/apply:os.system [id]", "names a type"),
        ("run: !!binary aGk=", "names a type"),
        ("run: !!timestamp 2024-01-01", "names a type"),
        ("? [a, b]\n: c", "a mapping or list as a key"),
        ("a: {<<: 3}", "<< merges mappings alone"),
        ("run: {steps: 1}\n---\nrun: {steps: 2}", "single document"),
    ],
)  # fmt: skip
def test_what_no_configuration_needs(text, said):
    with pytest.raises(ValueError, match=said):
        read_text(text)


def test_merged_mappings_lie_below_the_keys_beside_them():
    assert read_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}") == {"a": {"x": "1", "y": "2"}, "b": {"x": "1", "y": "3"}}
    assert [Typed(each).value for each in ("1", "1.5", "~", "true")] == [1, 1.5, None, True]


def test_a_file_of_another_kind(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (MOST_BYTES + 1))
    (tmp_path / "latin.yaml").write_bytes("run: {dir: früh}".encode("cp1252"))
    (tmp_path / "wide.yaml").write_bytes("run: {steps: 1}".encode("utf-16"))
    (tmp_path / "bom.yaml").write_bytes("run: {steps: 1}".encode("utf-8-sig"))
    assert load(tmp_path / "bom.yaml")[0].run.steps == 1
    for name, said in (
        ("pipe.yaml", "a pipe, socket or device"), ("large.yaml", "more than 1 MiB"), ("latin.yaml", "as UTF-8"),
        ("wide.yaml", "save it as UTF-8"), (".", "a folder, where a file is needed"), ("none.yaml", "no such file"),
        ("bom.yaml/x", "a part of the path is a file"), ("n" * 300, "the name is too long"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            load(tmp_path / name)
