"""Recipes that are wrong: text -> exact messages, all of them at once, each at its line and column."""

from pathlib import Path

import pytest

from robustmerge_kit.errors import RecipeError, RmkitError
from robustmerge_kit.recipe import load_recipe, parse_recipe

HEAD = "merge_method: robustmerge\nadapters: [a, b]\n"

WRONG = [
    # typos at each level
    (
        "merge_methd: robustmerge\nadapters: [a]\n",
        [
            "recipe:1:1: the key 'merge_method' is missing",
            "recipe:1:1: unknown key 'merge_methd'\nhint: did you mean merge_method?",
        ],
    ),
    (HEAD + "outptu: {}\n", ["recipe:3:1: unknown key 'outptu'\nhint: did you mean output?"]),
    (HEAD + "output:\n  rnk: 3\n", ["recipe:4:3: unknown key 'rnk'\nhint: did you mean rank?"]),
    (HEAD + "output: {rank: {enrgy: 0.9}}\n", None),
    (HEAD + "output: {rank: {budget: {avrage: 3}}}\n", None),
    (
        "merge_method: robustmerge\nadapters:\n  - adapter: a\n    paramters: {}\n",
        ["recipe:4:5: unknown key 'paramters'\nhint: did you mean parameters?"],
    ),
    (
        HEAD + "parameters: {densty: 0.1}\n",
        ["recipe:3:14: robustmerge has no parameter 'densty'\nhint: did you mean density?"],
    ),
    (
        HEAD + "parameters: {density: [{filer: a, value: 0.1}]}\n",
        ["recipe:3:25: unknown key 'filer'\nhint: did you mean filter?"],
    ),
    (
        HEAD + 'overrides: [{match: "*", parameter: {}}]\n',
        ["recipe:3:26: unknown key 'parameter'\nhint: did you mean parameters?"],
    ),
    (
        "merge_method: robustmege\nadapters: [a]\n",
        ["recipe:1:15: no merge method is called 'robustmege'\nhint: did you mean robustmerge?"],
    ),
    (
        HEAD + 'overrides: [{match: "*", merge_method: qqq}]\n',
        ["recipe:3:40: no merge method is called 'qqq'\nhint: `rmkit methods` lists all"],
    ),
    (HEAD + "extras: meen\n", ["recipe:3:9: extras must be mean, first, drop or error, got 'meen'\nhint: did you mean mean?"]),
    (
        HEAD + "space: cor\n",
        ["recipe:3:8: space must be full, core, knots, ctm or factor, got 'cor'\nhint: did you mean core?"],
    ),
    (HEAD + "space: {ctm: {rnk: 3}}\n", ["recipe:3:15: unknown key 'rnk'\nhint: did you mean rank?"]),
    (HEAD + "pre: [norm_balanc]\n", ["recipe:3:7: no pre step is called 'norm_balanc'\nhint: did you mean norm_balance?"]),
    (HEAD + "pre: [svc]\n", ["recipe:3:7: 'svc' is not a pre step\nhint: move it to `post:`"]),
    (HEAD + "pre: [{norm_balance: {bta: 1}}]\n", ["recipe:3:23: unknown key 'bta'\nhint: did you mean beta?"]),
    # wrong types and ranges
    (HEAD + "seed: 1.5\n", ["recipe:3:7: seed must be a whole number, got 1.5"]),
    (HEAD + "seed: true\n", ["recipe:3:7: seed must be a whole number, got true"]),
    (HEAD + "base_model: 3\n", ["recipe:3:13: base_model must be text, got 3"]),
    (HEAD + "parameters:\n", ["recipe:3:1: parameters has no value\nhint: write one, or delete the key"]),
    (HEAD + "overrides: {}\n", ["recipe:3:12: overrides must be a list, got {}"]),
    (HEAD + "output: model\n", ["recipe:3:9: output must be a mapping (key: value), got 'model'"]),
    (
        HEAD + "output: {uniform: yes}\n",
        ["recipe:3:19: output.uniform must be true or false, got 'yes'\nhint: YAML 1.2 writes true and false"],
    ),
    (HEAD + "output: {rank: 0}\n", ["recipe:3:16: output.rank must be at least 1, got 0"]),
    (
        HEAD + "output: {rank: [1]}\n",
        ["recipe:3:16: output.rank must be auto, sum, max, a whole number, {energy: 0.99} or {budget: {average: 16}}, got [1]"],
    ),
    (HEAD + "output: {rank: {energy: 1.5}}\n", ["recipe:3:25: output.rank.energy must be at most 1, got 1.5"]),
    (
        HEAD + "output: {for: vlm}\n",
        ["recipe:3:15: output.for must be peft, vllm, sglang, tgi or gguf, got 'vlm'\nhint: did you mean vllm?"],
    ),
    (HEAD + "extras: {first: 3}\n", ["recipe:3:17: extras.first must be text, got 3"]),
    ("merge_method: linear\nadapters: []\n", ["recipe:2:11: adapters must have at least 1 entry, got []"]),
    (
        "merge_method: linear\nadapters: ['', 3]\n",
        [
            "recipe:2:12: adapters[0] must not be empty, got ''",
            "recipe:2:16: adapters[1] must be a mapping (key: value), got 3",
        ],
    ),
    ("merge_method: linear\nadapters:\n  - name: x\n", ["recipe:3:5: the key 'adapter' is missing in adapters[0]"]),
    (HEAD + "parameters: {density: 2.0}\n", ["recipe:3:23: parameters.density must be at most 1, got 2.0"]),
    (HEAD + "parameters: {density: .nan}\n", ["recipe:3:23: parameters.density must be finite, got nan"]),
    (HEAD + "parameters: {density: [0.1, 1.5]}\n", ["recipe:3:29: parameters.density[1] must be at most 1, got 1.5"]),
    (HEAD + "parameters: {density: [0.1, x]}\n", ["recipe:3:29: parameters.density[1] must be a number, got 'x'"]),
    (HEAD + "parameters: {density: []}\n", ["recipe:3:23: parameters.density must have at least 1 entry, got []"]),
    (
        HEAD + "parameters:\n  density:\n    - {filter: q, value: 0.5}\n    - {value: [0.1, 7]}\n",
        ["recipe:6:21: parameters.density[1].value[1] must be at most 1, got 7"],
    ),
    (
        HEAD + "parameters: {gain: '2.0'}\n",
        ["recipe:3:20: parameters.gain must be a number, got '2.0'\nhint: write the number without quotes"],
    ),
    (HEAD + "parameters: {gain: true}\n", ["recipe:3:20: parameters.gain must be a number, got true"]),
    (
        HEAD + "parameters: {variant: papr}\n",
        ["recipe:3:23: parameters.variant must be official, paper or factor_sum, got 'papr'\nhint: did you mean paper?"],
    ),
    (
        HEAD + "parameters: {normalize: [0, 1]}\n",
        [
            "recipe:3:25: parameters.normalize takes one value, got a gradient [0, 1]\n"
            "hint: only numbers with fractions take a gradient; use a filter list, or overrides"
        ],
    ),
    (HEAD + "parameters: {density: {value: 1}}\n", None),
    # places of parameters
    (
        "merge_method: robustmerge\nadapters: [{adapter: a, parameters: {gain: 1}}]\n",
        ["recipe:2:38: gain applies to the merge as a whole\nhint: move it under the recipe's parameters"],
    ),
    (
        HEAD + 'overrides: [{match: "*", merge_method: linear, parameters: {density: 1}}]\n',
        ["recipe:3:61: linear has no parameter 'density'\nhint: known here: normalize, gain, weight"],
    ),
    (
        HEAD + 'overrides: [{match: "*", merge_method: linear}]\nparameters: {desity: 1}\n',
        ["recipe:4:14: none of robustmerge, linear has a parameter 'desity'\nhint: did you mean density?"],
    ),
    (
        "merge_method: magnitude_prune\nadapters: [a, {adapter: b, parameters: {density: 0.1}}]\n",
        ["recipe:1:15: magnitude_prune needs the parameter density\nhint: add it under parameters: {density: ..}"],
    ),
    ("merge_method: slerp\nadapters: [a]\nparameters: {t: 0.5}\n", ["recipe:2:1: slerp merges 2 adapters, got 1"]),
    # sections of their own, see tests/sweep
    (
        HEAD + "sweep: {}\n",
        ["recipe:3:8: the key 'evaluate' is missing in sweep", "recipe:3:8: the key 'search' is missing in sweep"],
    ),
    (HEAD + "dora: full\n", ["recipe:3:7: dora must be delta, got 'full'"]),
    (
        "merge_method: linear\nadapters: [{adapter: a, expert_axes: 1, expert_layout: mlx}]\n",
        [
            "recipe:2:38: adapters[0].expert_axes must be out_in or in_out, got 1",
            "recipe:2:56: adapters[0].expert_layout must be peft or unsloth, got 'mlx'",
        ],
    ),
    # the whole
    ("- a\n", ["recipe:1:1: a recipe is a mapping of keys, got ['a']\nhint: start with merge_method: NAME"]),
    (
        "merge_method: linear\nadapters: [{adapter: a, name: q}, {adapter: b, name: q}]\n",
        ["recipe:2:54: adapters[0] is called 'q' too\nhint: give each its own name"],
    ),
]


def messages(text: str) -> list[str]:
    with pytest.raises(RmkitError) as caught:
        parse_recipe(text)
    errors = getattr(caught.value, "errors", (caught.value,))
    assert all(error.exit_code == 2 for error in errors)
    return [str(error) for error in errors]


@pytest.mark.parametrize(("text", "expected"), WRONG)
def test_wrong_recipes(text: str, expected: list[str] | None) -> None:
    found = messages(text)
    for message in found:
        assert "pydantic" not in message
        assert "Input should" not in message
        assert "http" not in message
    if expected is not None:
        assert found == expected


def test_all_mistakes_are_told_at_once_in_the_order_of_the_text() -> None:
    text = (
        "merge_method: robustmerge\n"
        "adapters:\n"
        "  - adapter: x\n"
        "    parameters: {densty: 0.1, weight: abc}\n"
        "  - {adaptr: y}\n"
        "parameters: {gain: x}\n"
        "missing: eror\n"
        "sweep: {}\n"
        'overrides: [{match: "*", merge_method: linar, parameters: {gain: x}}]\n'
        "output: {dtype: bf16}\n"
    )
    found = messages(text)
    lines = [int(message.split(":")[1]) for message in found]
    assert lines == sorted(lines)
    assert {5, 7, 8, 9, 10} <= set(lines)
    assert any(
        "output.dtype must be float32, float16 or bfloat16, got 'bf16'\nhint: did you mean bfloat16?" in m for m in found
    )


def test_very_many_mistakes_are_counted() -> None:
    found = messages(HEAD + "".join(f"zz{i}: 1\n" for i in range(100)))
    assert len(found) == 41
    assert found[-1] == "recipe: 60 more mistakes"


FILES = [
    (None, "no such file"),
    (b"\xff\xfe", "byte 0xff is not UTF-8"),
    (b"merge_method: linear\nadapters: [\xe9]\n", "byte 0xe9 is not UTF-8"),
    (b"x" * 1_000_001, "the recipe is larger than"),
]


@pytest.mark.parametrize(("content", "message"), FILES)
def test_files_that_are_no_recipes(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(str(path))


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is a folder, not a recipe"):
        load_recipe(tmp_path)


def test_the_file_is_named_in_messages(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("merge_method: linear\nadapters: [a]\nsed: 1\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value) == f"{path}:3:1: unknown key 'sed'\nhint: did you mean seed?"
