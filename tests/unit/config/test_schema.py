"""The schema as documentation: every setting is described, every number has a unit, every setting has a reader."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from megacov.advantages import ADVANTAGES
from megacov.config import RunConfig, editor_schema, make_config
from megacov.config.fields import choice_paths, locate, members, sections_in, walk_values
from megacov.config.loss_section import FUNCTION_FORM, ImportedLoss
from megacov.config.messages import expected, unit_of
from megacov.config.section import Section, value_type
from megacov.losses import LOSSES
from megacov.selection.registry import SELECTORS

ROOT = Path(__file__).parents[3]
SCHEMA_FILES = ("schema.py", "algorithm.py", "selections.py", "rollout.py", "section.py")
PLACES = [(place.path, place.field) for place in walk_values(RunConfig)]


def sections(root: type[Section]) -> Iterator[type[Section]]:
    yield root
    for field in root.model_fields.values():
        for section in sections_in(field):
            yield from sections(section)


@pytest.mark.parametrize(("path", "field"), PLACES, ids=[path for path, _ in PLACES])
def test_a_setting_is_described_with_its_unit(path, field):
    assert field.description, "no description"
    is_number = value_type(field.annotation) in (int, float)
    assert field.description.endswith("]" if is_number else "."), field.description
    assert bool(unit_of(field)) == is_number
    assert expected(field)


def test_every_section_is_described():
    for section in sections(RunConfig):
        assert section.__doc__ != Section.__doc__
        assert all(field.description for field in section.model_fields.values()), section


def _attributes_read() -> set[str]:
    """Names that are read as an attribute anywhere outside of the schema."""
    names = set()
    for path in (ROOT / "megacov").rglob("*.py"):
        if path.parent.name == "config" and path.name in SCHEMA_FILES:
            continue
        names |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    return names


def _parameters() -> set[str]:
    """Parameters of functions in the folders whose functions get hyperparameters by name."""
    names = set()
    for folder in ("advantages", "losses", "selection"):
        for path in (ROOT / "megacov" / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    names |= {argument.arg for argument in node.args.args + node.args.kwonlyargs}
    return names


def test_every_setting_is_read_by_something():
    read, parameters = _attributes_read(), _parameters()
    unread = []
    for place in walk_values(RunConfig):
        key = place.path.rpartition(".")[2]
        # An imported loss has only its name, which has no default.
        has_own = hasattr(place.section, "hyperparameters") and place.section is not ImportedLoss
        own = place.section().hyperparameters() if has_own else {}
        if key not in read and not (key in own and key in parameters):
            unread.append(place.path)
    assert unread == [], "settings that nothing reads"


def test_places_are_found_through_forms_and_lists():
    assert locate(RunConfig, ("algorithm", "loss", "kl_cov", "kl_coef")).path == "algorithm.loss.kl_coef"
    assert locate(RunConfig, ("algorithm", "loss", "kl_cov", "kl_coef")).field is not None
    assert locate(RunConfig, ("algorithm", "loss", "kl_cov", "clip_low")).field is None
    assert locate(RunConfig, ("rollout", "stop", 2)).path == "rollout.stop[2]"
    assert choice_paths(RunConfig) == {
        ("algorithm", name) for name in ("advantages", "controller", "loss", "selection")
    }


def test_names_are_those_of_the_registries():
    algorithm = RunConfig.model_fields["algorithm"].annotation
    assert algorithm is not None
    assert list(members(algorithm.model_fields["advantages"])) == list(ADVANTAGES)
    assert list(members(algorithm.model_fields["loss"])) == [*LOSSES, FUNCTION_FORM]
    assert set(members(algorithm.model_fields["selection"])) == {"none", *SELECTORS}


def test_the_editor_schema_is_json_that_knows_every_key():
    schema = json.loads(json.dumps(editor_schema()))
    assert set(schema["properties"]) == {*RunConfig.model_fields, "extends"}
    assert schema["additionalProperties"] is False
    assert schema["$defs"].pop("ImportedLoss")["required"] == ["name"]
    assert "required" not in json.dumps(schema)
    lr = schema["$defs"]["OptimizerSection"]["properties"]["lr"]
    assert (lr["default"], lr["exclusiveMinimum"]) == (1e-6, 0)
    assert lr["description"].startswith("Peak learning rate.")


def fits_editor_schema(loss: dict) -> bool:
    """Whether an editor accepts this `algorithm.loss`: the part of JSON schema that the forms of a loss use."""
    schema = editor_schema()
    forms = schema["$defs"]["AlgorithmSection"]["properties"]["loss"]["anyOf"]

    def fits(form: dict) -> bool:
        known = form["properties"]
        name = loss.get("name", known["name"].get("const", ""))
        is_named = known["name"].get("const", name) == name and (":" in name or "pattern" not in known["name"])
        is_known = form["additionalProperties"] or loss.keys() <= known.keys()
        return is_named and is_known and loss.keys() >= set(form.get("required", []))

    return any(fits(schema["$defs"][form["$ref"].rpartition("/")[2]]) for form in forms)


def test_editors_know_the_keys_of_each_loss():
    assert fits_editor_schema({"name": "kl_cov", "kl_coef": 1.0})
    assert fits_editor_schema({"clip_low": 0.2})  # of a file that extends another
    assert fits_editor_schema({"name": "my_package.losses:my_loss", "anything": 1})
    assert not fits_editor_schema({"name": "kl_cov", "kl_cef": 1.0})
    assert not fits_editor_schema({"kl_cef": 1.0})
    assert not fits_editor_schema({"name": "kl_covv"})


@pytest.mark.parametrize(
    ("updates", "samples", "data", "scope"),
    [(4, 8, 1, "mini_batch"), (6, 4, 2, "mini_batch"), (8, 3, 5, "mini_batch"), (3, 2, 4, "micro_batch")],
)
def test_a_smaller_rollout_batch_still_has_equal_updates_with_work_for_all(updates, samples, data, scope):
    groups = updates * data * 2  # more than enough
    config = make_config(
        {
            "run": {"name": "x", "steps": 5},
            "model": {"path": "m"},
            "data": {"path": "d"},
            "rewards": {"verifier": "sum_pairs"},
            "rollout": {"prompts_per_step": groups, "samples_per_prompt": samples},
            "batch": {"updates_per_rollout": updates, "micro_batch_tokens": 100_000},
            "parallel": {"data": data},
            "algorithm": {"loss": {"name": "kl_cov"}, "selection": {"name": "kl_cov", "scope": scope}},
        }
    )
    per_rank = 2 if scope == "micro_batch" else 1
    usable = [
        number
        for number in range(1, groups + 1)
        if number * samples % updates == 0 and number * samples // updates >= data * per_rank
    ]
    assert usable == list(range(config.fewest_groups, groups + 1, config.group_multiple))
