from __future__ import annotations

import re

import pytest
import yaml

from negbank.train import registry
from negbank.train.commands.list import lines
from negbank.train.config import ConfigError, load, meeting, parse, root_model, to_dict

MINIMAL = {"run": {"steps": 100}}


def problems(data, *overrides, inputs=False):
    with pytest.raises(ConfigError) as caught:
        parse(data, overrides, inputs=inputs)
    return caught.value.problems


def test_defaults_file_and_overrides_in_that_order():
    config, notes = parse(
        {"run": {"steps": 100, "seed": 4}, "loss": {"temperature": 0.5}}, ["run.seed=7", "batches.batch_size=32"]
    )
    assert (config.run.seed, config.run.steps, config.batches.batch_size) == (7, 100, 32)
    assert config.loss.temperature == 0.5
    assert config.negatives.type == "emc2"
    assert config.refresh.mode == "rolling"
    assert notes == []


def test_everything_wrong_is_reported_at_once_each_with_its_key_and_remedy():
    found = problems(
        {
            "run": {"stps": 10, "seed": "many", "dir": "${oc.env:HOME}"},
            "negatives": {"type": "emc22", "draws": 1},
            "optm": {"lr": 1},
            "loss": {"temperature": -1},
            "encoder": {"width": 1.5},
            "index": 3,
            "data": {"augment": {"preset": "faces", "flip": 2}},
            "refresh": {"unit": "hours"},
        },
        "nonsense",
    )
    expected = {
        "'nonsense'": "expected key=value",
        "run.dir": "refused; write the value itself",
        "run.stps": "did you mean 'steps'?",
        "run.seed": "'many' is no int",
        "negatives.type": "'emc22' is unknown; did you mean 'emc2'?",
        "optm": "did you mean 'optim'?",
        "loss.temperature": "expected more than 0",
        "encoder.width": "1.5 is no int",
        "index": "expected a mapping",
        "data.augment.preset": "expected one of auto, digits, small_images, natural",
        "data.augment.flip": "expected at most 1",
        "refresh.unit": "expected one of steps, epochs",
    }
    assert len(found) == len(expected)
    for key, remedy in expected.items():
        assert any(line.startswith(f"{key}: ") and remedy in line for line in found), (key, found)


@pytest.mark.parametrize(
    "text",
    ["${oc.env:HOME}", "a ${oc.decode:x}", "${run.${oc.env:HOME}}", "${x:${run.seed}}", "${${run.device}:HOME}",
     "${${run.precision}}", "\\${oc.env:HOME}", "${", "${}", "${run.seed", "${ run.seed }", "${run.seed }", "${.seed}"],
)  # fmt: skip
def test_resolvers_are_refused_wherever_they_stand(text, monkeypatch):
    monkeypatch.setenv("HOME", "leaked")
    for data, overrides in (
        ({"run": {"steps": 1, "dir": text, "device": "oc.env"}}, ()),
        (MINIMAL, (f"run.dir={text}",)),
    ):
        assert all("leaked" not in line for line in problems(data, *overrides))
        assert any("asks a resolver" in line for line in problems(data, *overrides))


def test_interpolation_within_the_file_is_fine():
    data = {"run": {"steps": 10, "seed": 0, "checkpoint_every": "${run.steps}", "dir": "runs/${data.type}-${run.seed}"},
            "data": {"type": "digits"}}  # fmt: skip
    config, _ = parse(data)
    assert (config.run.checkpoint_every, config.run.dir) == (10, "runs/digits-0")
    config, _ = parse(data, ["run.steps=20", "run.log_every=${run.steps}"])  # an override is seen by what refers to it
    assert (config.run.checkpoint_every, config.run.log_every) == (20, 20)
    config, _ = parse({**MINIMAL, "batches": {"proposal": "${negatives.proposal}", "type": "drawn"},
                       "negatives": {"proposals": "index", "proposal": {"type": "nearest", "k": 5}}})  # fmt: skip
    assert config.batches.proposal.k == 5


def test_one_override_of_a_type_is_enough():
    data = {**MINIMAL, "negatives": {"type": "emc2", "draws": 3, "proposal": {"type": "nearest", "k": 5}}}
    config, notes = parse(data, ["negatives.type=in_batch"])
    assert config.negatives.type == "in_batch"
    assert notes == [
        "negatives.type=in_batch: dropped negatives.draws, an option of emc2",
        "negatives.type=in_batch: dropped negatives.proposal, an option of emc2",
    ]
    config, notes = parse(data, ["negatives.proposal.type=uniform"])
    assert (config.negatives.draws, config.negatives.proposal.type) == (3, "uniform")
    assert notes == ["negatives.proposal.type=uniform: dropped negatives.proposal.k, an option of nearest"]
    assert (
        "negatives.drws: no such key" in problems({**MINIMAL, "negatives": {"drws": 3}}, "negatives.type=in_batch")[0]
    )


def test_an_override_of_the_length_takes_the_place_of_the_files():
    config, notes = parse(MINIMAL, ["run.epochs=5"])
    assert (config.run.steps, config.run.epochs) == (None, 5)
    assert notes == ["run.epochs=5: dropped run.steps=100"]
    config, notes = parse({"run": {"epochs": 5}}, ["run.steps=7"])
    assert (config.run.steps, config.run.epochs) == (7, None)
    assert notes == ["run.steps=7: dropped run.epochs=5"]
    for overrides in (["run.epochs=null"], ["run.seed=1"], ["run.steps=100", "run.epochs=5"]):
        config, notes = parse(MINIMAL, overrides)
        assert (config.run.steps, notes) == (100, [])


def test_types_share_what_they_share():
    adam, _ = parse({**MINIMAL, "optim": {"lr": 0.5, "warmup": 3}})
    sgd, _ = parse({**MINIMAL, "optim": {"lr": 0.5, "warmup": 3}}, ["optim.type=lars"])
    assert adam.optim.type == "adamw"
    assert hasattr(sgd.optim, "momentum")
    assert (sgd.optim.lr, sgd.optim.warmup, sgd.optim.type) == (0.5, 3, "lars")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "set one of them"),
        ({**MINIMAL, "data": {"type": "image_folder"}}, "data.root"),
        ({**MINIMAL, "data": {"augment": {"scale": [0.1]}}}, "data.augment.scale: \\[0.1\\], expected 2 values"),
        ({**MINIMAL, "data": {"augment": {"scale": [0.9, 0.2]}}}, "data.augment.scale: .*min ≤ max"),
        ({**MINIMAL, "data": {"augment": {"jitter": [0.4, 0.4, 0.4, 0.9]}}}, "data.augment.jitter: hue 0.9"),
        ({**MINIMAL, "optim": {"betas": [0.9]}}, "optim.betas: .*expected 2 values"),
        ({**MINIMAL, "batches": {"batch_size": 2}}, "too small for encoder.norm=batch"),
    ],
)
def test_impossible_combinations(data, message):
    with pytest.raises(ConfigError, match=message):
        parse(data)


def test_a_resolved_configuration_reads_back_the_same(tmp_path):
    config, _ = parse({**MINIMAL, "encoder": {"type": "resnet18", "projector": {"dim": 64}}})
    assert config.encoder.projector.hidden == 2048
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(to_dict(config)))
    again, _ = load(tmp_path / "c.yaml")
    assert again == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: [", "not readable as YAML"),
        ("- 1\n- 2", "expected sections"),
        ("run: {steps: 1}\nrun: {steps: 2}", "duplicate"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(path)
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "missing.yaml")


def test_every_name_and_key_is_described():
    for kind, names in registry.REGISTRY.items():
        for name in names:
            found = list(lines(f"{kind}.{name}"))
            keys = [line for line in found if " = " in line and not line.startswith(" ")]
            assert len(set(keys)) == len(keys)
            assert all(line.strip() and not line.endswith("None") for line in found if line.startswith("    ")), found
    promised = (
        "batches.type negatives.type loss.temperature refresh.every run.dir run.seed run.steps eval.type data.type"
    )
    shown = [line.split(" ")[0].rstrip(":") for line in lines("train")]
    assert set(promised.split()) <= set(shown)
    assert any("Yau et al. 2024" in line for line in lines("negatives"))
    assert any("also: simclr, clip, infonce" in line for line in lines("negatives"))
    with pytest.raises(ValueError, match="did you mean 'negatives'"):
        list(lines("negative"))
    with pytest.raises(ValueError, match="did you mean 'emc2'"):
        list(lines("negatives.emc"))


@pytest.mark.parametrize(
    ("typed", "meant"), [("simclr", "in_batch"), ("clip", "in_batch"), ("infonce", "in_batch"), ("ance", "hardest")]
)
def test_other_names_that_people_type(typed, meant):
    assert parse({**MINIMAL, "negatives": {"type": typed}})[0].negatives.type == meant
    assert parse(MINIMAL, [f"negatives.type={typed}"])[0].negatives.type == meant
    config, _ = parse(MINIMAL, ["negatives.type=in_batch", "batches.type=batchsampler"])
    assert config.batches.type == "prosampler"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("run.steps=1.5", "run.steps: 1.5 is no int"),
        ("run.steps=true", "run.steps: True is no int"),
        ("run.steps='7'", "run.steps: '7' is no int"),
        ("run.steps=0", "run.steps: 0, expected at least 1"),
        ("run.seed=4611686018427387904", "run.seed: 4611686018427387904, expected less than 4611686018427387904"),
        ("loss.temperature=high", "loss.temperature: 'high' is no float"),
        ("encoder.type=convnt", "encoder.type: 'convnt' is unknown; did you mean 'convnet'?"),
        ("negatives.proposal.type=nearst", "negatives.proposal.type: 'nearst' is unknown; did you mean 'nearest'?"),
        ("negatives.proposal.floor=0", "negatives.proposal.floor: 0, expected more than 0"),
        ("data.type=image_folder", "data.root: is needed"),
    ],
)
def test_one_mistake_is_one_problem(override, said):
    (found,) = problems(MINIMAL, override)
    assert found.startswith(said)


def test_a_whole_number_may_be_typed_as_one_pleases():
    assert parse(MINIMAL, ["run.steps=1e2"])[0].run.steps == 100


NEGATIVES = [{"type": name} for name in registry.REGISTRY["negatives"]] + [
    {"type": "emc2", "proposals": "index"}, {"type": "emc2", "proposals": "in_batch"},
    {"type": "importance", "batch": False}, {"type": "importance", "draws": 0},
]  # fmt: skip


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("batches", registry.REGISTRY["batches"])
def test_what_cannot_meet_is_known_without_an_object(batches, grouped, tmp_path):
    """The sections alone say of negatives and batches what the objects made of them say, for every pair."""
    import numpy as np
    import torch

    from negbank.counter import Counter
    from negbank.train.make import make
    from negbank.train.towers import _require_known

    np.save(tmp_path / "groups.npy", np.arange(2400) % 80)
    groups = {"groups": str(tmp_path / "groups.npy"), "max_per_group": 2} if grouped and batches != "drawn" else {}
    given = {"num_rows": 2400, "views": 2, "device": torch.device("cpu"), "temperature": 0.1, "loss.temperature": 0.1,
             "exclude": None, "counter": Counter.of(0), "encode": None}  # fmt: skip
    model = root_model("train")
    for negatives in NEGATIVES:
        sections = {"batches": {"type": batches, "batch_size": 8, **groups}, "negatives": negatives}
        config = model.model_validate(sections)
        found = [make(kind, getattr(config, kind), **given) for kind in ("negatives", "batches")]
        problem = meeting.sections(config.batches, config.negatives)
        if problem is None:
            _require_known(*found)
        else:
            with pytest.raises(ValueError, match=re.escape(problem)):
                _require_known(*found)
            assert f"  negatives.type: {problem}" in "\n".join(f"  {p}" for p in problems({**MINIMAL, **sections}))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"data": {"type": "image_folder", "root": "/no/such"}},
            "data.root: '/no/such': no such file or folder; check",
        ),
        ({"data": {"type": "tensors", "path": "/no/x.npy"}}, "data.path: '/no/x.npy': no such file or folder"),
        (
            {"data": {"type": "tensors", "path": ".", "labels": "no.npy"}},
            "data.labels: 'no.npy': no such file or folder",
        ),
        ({"data": {"type": "tensors", "path": "/dev/zero"}}, "data.path: '/dev/zero': a pipe, socket or device"),
        ({"batches": {"groups": "no.npy"}}, "batches.groups: 'no.npy': no such file or folder"),
        ({"data": {"type": "pairs", "left": {"path": "."}, "right": {"path": "no"}}}, "data.right.path: 'no': no such"),
        ({"negatives": {"query": "fresh"}}, "negatives.query: fresh encodes drawn rows in a second pass"),
        ({"batches": {"type": "prosampler"}}, "negatives.type: emc2 takes the batch's rows for uniform draws"),
        ({"negatives": {"type": "sogclr"}, "batches": {"type": "knn"}}, "negatives.type: sogclr takes the batch's"),
    ],
)
def test_what_is_knowable_is_said_before_anything_is_loaded(given, said):
    (found,) = problems({**MINIMAL, **given}, inputs=True)
    assert found.startswith(said)


def test_remedies_of_what_may_not_meet_exist():
    """Each option that a refusal names makes the configuration a good one."""
    for negatives in ("emc2", "sogclr", "isogclr", "importance"):
        (found,) = problems({**MINIMAL, "negatives": {"type": negatives}, "batches": {"type": "knn"}})
        named = re.findall(r"((?:batches|negatives)\.\w+=\w+)", found)
        others = re.search(r"\((.*)\)$", found)[1].split(", ")
        assert len(named) + len(others) > 5
        for override in (*named, *(f"negatives.type={name}" for name in others)):
            data = {**MINIMAL, "negatives": {"type": negatives}, "batches": {"type": "knn"}}
            parse(data, [override])


def test_editors_get_a_json_schema():
    schema = root_model("train").model_json_schema()
    negatives = schema["properties"]["negatives"]
    text = str(negatives) + str(schema["$defs"])
    assert all(name in text for name in registry.REGISTRY["negatives"])
    emc2 = next(each for each in schema["$defs"].values() if each.get("title") == "emc2")
    assert emc2["additionalProperties"] is False
    assert emc2["properties"]["draws"]["minimum"] == 1
    assert emc2["properties"]["query"]["enum"] == ["bank", "fresh"]
    assert emc2["properties"]["draws"]["description"].startswith("index draws a visit")


class Own:
    """A sampler of a script's own.

    Args:
        num_rows: N.
        share: how much of the batch is kept.
    """

    def __init__(self, num_rows: int, *, share: float = 0.5) -> None: ...


def test_a_script_can_add_a_name(monkeypatch):
    monkeypatch.setitem(registry.REGISTRY, "negatives", dict(registry.REGISTRY["negatives"]))
    registry.register("negatives", "own", Own)
    assert parse({**MINIMAL, "negatives": {"type": "own", "share": 0.25}})[0].negatives.share == 0.25
    assert "negatives.share" in problems({**MINIMAL, "negatives": {"type": "own", "share": "x"}})[0]
    with pytest.raises(ValueError, match="choose another name"):
        registry.register("negatives", "own", dict)
    with pytest.raises(ValueError, match="kind='negative': expected one of data"):
        registry.register("negative", "own", Own)
    monkeypatch.undo()
    for forget in registry.CACHES:
        forget()
    assert "'own' is unknown" in problems({**MINIMAL, "negatives": {"type": "own"}})[0]
