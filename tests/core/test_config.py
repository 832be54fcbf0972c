"""A wrong configuration is refused with the name of its field; every configuration that is shipped works."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from selfreward_jax.configs import base
from selfreward_jax.core.config import BOUNDS, CHOICES, check, differences, leaves, load_config, to_dict
from selfreward_jax.core.errors import UserError
from selfreward_jax.core.mesh import RULES

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(path for path in CONFIGS.glob("*.py") if path.name != "__init__.py")
BASE = str(CONFIGS / "base.py")
FIELDS = dict(leaves(base.get_config()))
NUMBERS = {name: value for name, value in FIELDS.items() if type(value) in (int, float)}
# Paths and names that only their reader can judge.
FREE_TEXT = {
    "judge.function",
    "checkpoint.judge",
    "checkpoint.prompts",
    "prompts.seeds",
    "prompts.template",
    "model.path",
    "model.adapter",
    "model.chat_template",
    "seeds.ift",
    "seeds.eft",
    "prompts.source",
}
FREE_TEXT |= {"judge.template", "dpo.data", "model.date"}
FREE_TEXT |= {f"mesh.rules.{axis}" for axis in dict(RULES)}


def changed(name: str, value) -> ConfigDict:
    config = base.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict({name: value})
    return config


def written(tmp_path, *lines: str) -> str:
    """A file whose `get_config` runs these lines on the base configuration `c`."""
    source = ["from selfreward_jax.configs import base", "def get_config():", "    c = base.get_config()"]
    (tmp_path / "mine.py").write_text("\n".join([*source, *(f"    {line}" for line in lines), ""]))
    return str(tmp_path / "mine.py")


def assert_refused(reason: str, path: str = BASE, *overrides: str) -> None:
    with pytest.raises(UserError, match=reason) as error:
        load_config(path, overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_configuration_that_is_shipped_works(path):
    check(load_config(str(path)))


def test_all_fields_of_the_base_are_in_every_configuration():
    for path in FILES:
        assert dict(leaves(load_config(str(path)))).keys() == FIELDS.keys()


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_every_number_has_bounds_that_admit_its_default(name):
    low, high = BOUNDS[name]
    assert low is None or low <= NUMBERS[name]
    assert high is None or NUMBERS[name] <= high


def test_every_text_has_choices_that_admit_its_default_or_is_free():
    texts = {name for name, value in FIELDS.items() if isinstance(value, str)}
    assert texts == CHOICES.keys() | FREE_TEXT
    for name, choices in CHOICES.items():
        assert FIELDS[name] in choices


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_values_out_of_bounds_are_refused_and_the_bounds_themselves_are_not(name):
    low, high = BOUNDS[name]
    for bound, step in ((low, -1), (high, 1)):
        if bound is None:
            continue
        with pytest.raises(UserError, match=f"config.{name}: .* must be "):
            check(changed(name, bound + step))
        try:
            check(changed(name, bound))
        except UserError as error:  # another rule than the bounds may speak against it
            assert "must be at least" not in str(error) and "must be between" not in str(error)


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_a_value_that_is_no_choice_is_refused_and_all_choices_are_named(name):
    with pytest.raises(UserError, match=f"config.{name}: 'x' is not one of {', '.join(CHOICES[name])}"):
        check(changed(name, "x"))
    for choice in CHOICES[name]:
        config = changed(name, choice)
        config.checkpoint.held_out = 8.0  # which a choice of checkpoint rests on
        config.judge.function = "math:floor" if choice == "function" else ""
        check(config)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("sft.schedule=cosin", "'cosin' is not one of cosine, linear, constant"),
        ("training.optimizer=sgd", "'sgd' is not one of adamw, adafactor"),
        ("training.moments_dtype=int4", "'int4' is not one of float32, bfloat16, int8"),
        ("training.ema_decay=1.0", "1.0 must be between 0 and 0.999999"),
        ("training.ema_decay=-0.1", "-0.1 must be between"),
        ("training.max_skipped=0", "0 must be at least 1"),
        ("log.peak_tflops=-1", "-1.0 must be at least 0"),
    ],
)
def test_what_can_not_train_is_refused(override, reason):
    assert_refused(f"config.{override.split('=')[0]}: {reason}", BASE, f"--config.{override}")


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_number_must_be_finite(value):
    assert_refused(r"config\.dpo\.beta: .* finite", BASE, f"--config.dpo.beta={value}")


@pytest.mark.parametrize(
    ("name", "value"),
    [("sft.epochs", "3"), ("sft.epochs", 1.5), ("sft.epochs", True), ("sft.learning_rate", None), ("dpo.beta", "0.1")]
    + [("log.tensorboard", 1), ("model.path", 5), ("prompts.keywords", "image")],
)
def test_a_value_of_the_wrong_type_is_refused(name, value):
    with pytest.raises(UserError, match=rf"config\.{name}: {value!r} is not of type {type(FIELDS[name]).__name__}"):
        check(changed(name, value))


def test_a_whole_number_is_a_number_and_a_list_is_a_tuple():
    check(changed("dpo.beta", 1))
    check(changed("prompts.keywords", ["image"]))


@pytest.mark.parametrize("targets", ["()", "('q', 'embed')", "('q', 'q')"])
def test_lora_targets_are_matrices_each_once(targets):
    assert_refused(
        r"config\.lora\.targets: .* must hold some of q, k, v, o, ", BASE, f"--config.lora.targets={targets}"
    )


def test_keywords_are_text():
    assert_refused(r"config\.prompts\.keywords: \(1, 2\)", BASE, "--config.prompts.keywords=(1, 2)")


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["sft.micro_batch_size=3"], "sft.micro_batch_size: 3 must divide batch_size 16"),
        (["dpo.batch_size=12", "dpo.micro_batch_size=8"], "dpo.micro_batch_size: 8 must divide"),
        (["judge.samples=1"], "judge.min_parsed: more than judge.samples"),
        (["prompts.min_words=151"], "prompts.min_words: more than prompts.max_words"),
        (["training.optimizer=adafactor", "training.moments_dtype=int8"], "training.moments_dtype: adafactor keeps no"),
        (["prompts.source="], "prompts.source: empty"),
        (["checkpoint.choose=loss"], "checkpoint.choose: loss is measured on held-out rows; set checkpoint.held_out"),
        (
            ["checkpoint.choose=win_rate"],
            "checkpoint.choose: win_rate .* set .* or checkpoint.prompts",
        ),
        (
            ["checkpoint.choose=win_rate", "checkpoint.prompts=p", "judge.method=function", "judge.function=m:f"],
            "checkpoint.choose: win_rate asks a model",
        ),
        (["checkpoint.held_out=2.5"], "checkpoint.held_out: 2.5 must be a share below 1 or a whole number of rows"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(overrides, field):
    assert_refused(f"^config.{field}", BASE, *(f"--config.{override}" for override in overrides))


def test_an_unknown_field_of_a_file_is_refused_with_near_names(tmp_path):
    path = written(tmp_path, "c.sft.epochz = 3", "return c")
    assert_refused(r"^config\.sft\.epochz: no such field\. Did you mean sft\.epochs", path)


def test_an_unknown_field_of_the_command_line_is_refused_with_near_names():
    assert_refused(r"^--config\.dpo\.betta: no such field\. Did you mean dpo\.beta", BASE, "--config.dpo.betta=1")


def test_a_missing_field_is_named(tmp_path):
    assert_refused(r"^config\.judge\.\w+: the field is missing", written(tmp_path, "del c.judge", "return c"))


@pytest.mark.parametrize(
    ("override", "kind"), [("dpo.beta=x", "float"), ("sft.epochs=1.5", "int"), ("log.tensorboard=maybe", "bool")]
)
def test_a_wrong_value_on_the_command_line_is_refused(override, kind):
    assert_refused(f"^--config.{override}: not of type {kind}", BASE, f"--config.{override}")


@pytest.mark.parametrize("override", ["dpo.beta=1", "--config.dpo.beta", "--config=3", "--seed=1"])
def test_an_override_of_another_form_is_refused(override):
    assert_refused("not understood; change a field with --config.FIELD=VALUE", BASE, override)


def test_overrides_change_their_fields_and_no_others():
    overrides = ["dpo.beta=0.2", "log.tensorboard=false", "model.path=/a b/c=d", "prompts.keywords=('x',)"]
    config = load_config(BASE, [*(f"--config.{override}" for override in overrides), "--config.respond.n=8"])
    assert differences(to_dict(base.get_config()), to_dict(config)) == [
        "dpo.beta: 0.1 -> 0.2",
        "log.tensorboard: True -> False",
        "model.path: '' -> '/a b/c=d'",
        f"prompts.keywords: {list(FIELDS['prompts.keywords'])!r} -> ['x']",
        "respond.n: 4 -> 8",
    ]


def test_a_missing_file_is_refused(tmp_path):
    assert_refused("nope.py: no such file", str(tmp_path / "nope.py"))


def test_a_folder_is_no_configuration(tmp_path):
    assert_refused("no such file", str(tmp_path))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("return None", "returned NoneType, not a ConfigDict"),
        ("return {'seed': 1}", "returned dict, not a ConfigDict"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("c.sft.epochs = '3'", "Could not override field 'epochs'"),
        ("return (", "SyntaxError"),
    ],
)
def test_a_file_that_fails_is_refused_with_its_reason(line, reason, tmp_path):
    path = written(tmp_path, line)
    assert_refused(f"^--config={path}: .*{reason}", path)


def test_a_configuration_is_json():
    assert to_dict(base.get_config())["prompts"]["keywords"][0] == "image"


def test_equal_configurations_do_not_differ():
    assert differences(to_dict(base.get_config()), to_dict(base.get_config())) == []


def test_a_field_that_only_one_side_has_differs():
    assert differences({"a": {"b": 1}}, {}) == ["a.b: 1 -> None"]


def test_checks_name_only_fields_that_there_are():
    assert (BOUNDS.keys() | CHOICES.keys()) <= FIELDS.keys()
