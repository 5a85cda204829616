"""Messages of torch_interop on files, wrappers, weights in parts and malformed names; without PyTorch."""

import re

import numpy as np
import pytest

from batchnorm_jax.torch_interop import Layer, from_torch, names_from_torch, to_torch
from tests.torch_arrays import draw

FC = {"fc.weight": draw(4, 2), "fc.bias": draw(4)}
EMA = {name: array + 1 for name, array in FC.items()}
NAMES = {"fc": "fc"}
OPTIMIZER = {"state": {0: {"step": np.float32(3), "exp_avg": draw(4, 2)}}, "param_groups": [{"lr": 0.1}]}


class Model:
    """As a module of PyTorch has it."""

    def state_dict(self):
        return dict(FC)


@pytest.mark.parametrize(
    ("file", "advice"),
    [
        ({"state_dict": FC}, "file['state_dict']"),
        ({"epoch": 3, "model": FC, "optimizer": OPTIMIZER}, "file['model']"),
        ({"optimizer": OPTIMIZER, "net": {"weights": FC}, "args": None}, "file['net']['weights']"),
        ({"model": FC, "model_ema": EMA}, "file['model'] or file['model_ema']"),
        ({"other": {"x.weight": draw(2, 3), "y.weight": draw(3), "z": draw(2)}, "model": FC}, "file['model']"),
        ({"model": Model(), "epoch": 1}, "file['model'].state_dict()"),
        # A wrapper's names within the file: those are answered once the dictionary is given.
        ({"model": {f"module.{name}": array for name, array in FC.items()}, "epoch": 1}, "file['model']"),
    ],
)
def test_a_file_with_the_state_inside(file, advice):
    with pytest.raises(ValueError) as error:
        from_torch(file, NAMES)
    assert str(error.value).startswith("from_torch: the state dictionary is inside the one that was given, whose keys")
    assert str(error.value).endswith(f", give {advice}")
    for inside in advice.removeprefix("file").split(" or file"):
        assert eval(f"file{inside}", {"file": file}), "the advice can be followed"
    if "other" not in file:  # Without names the largest is what is meant.
        with pytest.raises(ValueError, match=re.escape(f"give {advice}")):
            names_from_torch(file)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (Model(), r"Model is no state dictionary; give its state_dict\(\)$"),
        ([1, 2], "list is no state dictionary; give PyTorch's name of each array"),
        ({}, "the state dictionary is empty; give that of a model"),
        ({**FC, "fc._extra_state": None}, r"what is no array: 'fc._extra_state' \(NoneType\); take it out"),
        ({**FC, "epochs": {"a": 1}}, r"'epochs' \(dict\); take it out"),
    ],
)
def test_what_is_no_state_dictionary(state, message):
    with pytest.raises(ValueError, match=rf"^from_torch: .*{message}"):
        from_torch(state, NAMES)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.net."])
def test_a_wrapper_of_the_model(prefix):
    state = {f"{prefix}{name}": array for name, array in {**FC, "conv.weight": draw(2, 2, 1)}.items()}
    names = {**NAMES, "conv": "conv"}
    with pytest.raises(ValueError, match=rf"Each of its names begins with '{re.escape(prefix)}'") as error:
        from_torch(state, names)
    advice = str(error.value).rpartition("give ")[2]
    assert set(from_torch(eval(advice, {"state_dict": state}), names)[0]["params"]) == {"fc", "conv"}


def test_a_beginning_that_some_names_have_is_no_wrapper():
    with pytest.raises(ValueError, match=r"'fc' \(closest: 'a.fc'\)") as error:
        from_torch({"a.fc.weight": draw(2, 2), "b.fc.weight": draw(2, 2)}, {"fc": "fc"})
    assert "begins with" not in str(error.value)


def test_a_state_of_several_layers_needs_names():
    with pytest.raises(ValueError, match=r"Without names it is that of one layer; names_from_torch\(state_dict\)"):
        from_torch(FC)


IN_PARTS = {
    "weight_norm": (("weight_g", "weight_v"), "torch.nn.utils.remove_weight_norm({}, 'weight')"),
    "spectral_norm": (("weight_orig", "weight_u", "weight_v"), "torch.nn.utils.remove_spectral_norm({}, 'weight')"),
    "prune": (("weight_orig", "weight_mask"), "torch.nn.utils.prune.remove({}, 'weight')"),
    "new weight_norm": (
        ("parametrizations.weight.original0", "parametrizations.weight.original1"),
        "torch.nn.utils.parametrize.remove_parametrizations({}, 'weight')",
    ),
    "new spectral_norm": (
        ("parametrizations.weight.original", "parametrizations.weight.0._u", "parametrizations.weight.0._v"),
        "torch.nn.utils.parametrize.remove_parametrizations({}, 'weight')",
    ),
}


@pytest.mark.parametrize("call", [lambda state: from_torch(state, {"a.conv": "conv"}), names_from_torch, from_torch])
@pytest.mark.parametrize("way", IN_PARTS)
def test_a_weight_in_parts(way, call):
    entries, undo = IN_PARTS[way]
    name = "" if call is from_torch else "a.conv."
    module = "model.get_submodule('a.conv')" if name else "model"
    state = {f"{name}{entry}": draw(3, 2, 1) for entry in ("bias", *entries)}
    with pytest.raises(ValueError, match=re.escape(f"before state_dict() call {undo.format(module)}") + "$"):
        call(state)
    # Many are not all listed, and the call for one is that for each.
    many = {f"{i}.{entry}": draw(2, 2, 1) for i in range(9) for entry in entries}
    with pytest.raises(ValueError, match=r"of '0', '1', .*'5' and 3 more in parts.*, and so for each of the others$"):
        names_from_torch(many)


def test_arrays_of_such_names_that_are_carried_as_they_are():
    state = {"gate.weight_g": draw(3, 1), "gate.weight_v": draw(3, 2)}
    variables, _ = from_torch(state, {"gate": Layer("gate", kind="as_is")})
    np.testing.assert_array_equal(variables["params"]["gate"]["weight_g"], state["gate.weight_g"])


def test_the_calls_that_are_advised_do_what_is_said():
    torch = pytest.importorskip("torch", reason="what PyTorch itself makes of its layers; CI has none")
    prune = pytest.importorskip("torch.nn.utils.prune")
    make = {
        "spectral_norm": lambda layer: torch.nn.utils.spectral_norm(layer),
        "prune": lambda layer: prune.random_unstructured(layer, "weight", 0.5),
        "new weight_norm": lambda layer: torch.nn.utils.parametrizations.weight_norm(layer),
        "new spectral_norm": lambda layer: torch.nn.utils.parametrizations.spectral_norm(layer),
    }
    for way, wrap in make.items():
        model = torch.nn.Sequential(wrap(torch.nn.Conv1d(2, 3, 3)))
        entries, _ = IN_PARTS[way]
        assert {f"0.{entry}" for entry in entries} <= set(model.state_dict()), way
        with pytest.raises(ValueError) as error:
            from_torch(model.state_dict(), {"0": "conv"})
        exec(str(error.value).rpartition(" call ")[2], {"torch": torch, "model": model})
        variables, _ = from_torch(model.state_dict(), {"0": "conv"})
        assert variables["params"]["conv"]["kernel"].shape == (3, 2, 3)


@pytest.mark.parametrize("bias", [True, False])
def test_a_transposed_convolution_of_groups(bias):
    state = {"up.weight": draw(4, 3, 2, 2)} | ({"up.bias": draw(6)} if bias else {})
    names = {"up": Layer("up", kind="conv_transpose")}
    if bias:
        advice = r"of 2 groups, and Flax's has one.*one layer per group, with weight.chunk\(2\) and bias.chunk\(2\)"
        with pytest.raises(ValueError, match=f"layer 'up' has 3 outputs per group and a bias of 6: .*{advice}"):
            from_torch(state, names)
    else:  # Nothing says so but the Flax model.
        like = {"params": {"up": {"kernel": np.zeros((2, 2, 4, 6))}}}
        with pytest.raises(ValueError, match=r"params/up/kernel has shape \(2, 2, 4, 3\), not \(2, 2, 4, 6\)"):
            from_torch(state, names, like=like)


def test_a_bias_of_another_size_is_refused():
    with pytest.raises(ValueError, match="for kind 'conv' the weight has 4 outputs, and so must the bias"):
        from_torch({"weight": draw(4, 3, 2), "bias": draw(3)}, {"": Layer(kind="conv")})


@pytest.mark.parametrize("call", [from_torch, to_torch])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({}, r"names=\{\} names no layer; give PyTorch's name of each .*names_from_torch\(state_dict\)"),
        ([("fc", "fc")], r"names=\[\('fc', 'fc'\)\] names no layer"),
        (
            {"fc": "head.fc"},
            r"the path of 'fc' is 'head.fc'; .* slashes: 'head/fc'\. .* a tuple of names, \('head.fc',\)",
        ),
        (
            {"fc": ["head", "fc"]},
            r"the path of 'fc' is \['head', 'fc'\]; a path is a string, 'stage1/norm', or a tuple",
        ),
        ({"fc": None}, "the path of 'fc' is None; a path is a string"),
        ({"fc": ("head", "")}, r"the path of 'fc' is \('head', ''\); a path is"),
        ({0: "fc"}, "the name 0 must be a string, PyTorch's name of a module"),
        ({"fc": "params/fc"}, "the path of 'fc' is 'params/fc'; a path begins below the collection: 'fc'"),
        ({"fc": Layer("batch_stats/fc")}, "a path begins below the collection: 'fc'"),
    ],
)
def test_malformed_names(call, names, message):
    given = FC if call is from_torch else {"params": {"fc": {"kernel": draw(2, 4), "bias": draw(4)}}}
    with pytest.raises(ValueError, match=rf"^{call.__name__}: .*{message}"):
        call(given, names)


def test_a_path_with_dots_is_refused_by_a_layer_and_taken_as_a_tuple():
    with pytest.raises(ValueError, match=r"Layer: path is 'a\.b'; the parts of a path are separated by slashes: 'a/b'"):
        Layer("a.b", kind="linear")
    variables, _ = from_torch(FC, {"fc": ("a.b",)})
    assert list(variables["params"]) == ["a.b"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", r"'' \(the model itself, which has no arrays of its own here\)"),
        ("layer/0/fc", r"'layer/0/fc' \(closest: 'layer.0.fc'\)"),
        ("layer.0.fc.", r"'layer.0.fc.' \(closest: 'layer.0.fc'\)"),
        (".layer.0.fc", r"'.layer.0.fc' \(closest: 'layer.0.fc'\)"),
    ],
)
def test_names_that_pytorch_does_not_write(name, message):
    with pytest.raises(ValueError, match=f"named and not in the state dictionary: {message}"):
        from_torch({f"layer.0.{entry}": array for entry, array in FC.items()}, {name: "fc"})


def test_messages_list_a_few_names_and_count_the_rest():
    state = {f"fc{i}.weight": draw(2, 2) for i in range(500)}
    names = {f"gone{i}": f"x{i}" for i in range(500)}
    like = {"params": {f"y{i}": {"kernel": draw(2, 2)} for i in range(500)}}
    known = {name: Layer(path, kind="linear") for name, path in zip(map("fc{}".format, range(500)), names, strict=True)}
    variables, _ = from_torch(state, known)
    for call in (
        lambda: from_torch(state, names),
        lambda: from_torch(state, known, like=like),
        lambda: to_torch(variables, names),
        lambda: to_torch(variables, known, {f"n{i}": 1 for i in range(500)}),
        lambda: from_torch({**state, **{f"z{i}": None for i in range(500)}}, known),
    ):
        with pytest.raises(ValueError, match=r" and (494|994) more") as error:
            call()
        assert len(str(error.value)) < 1000
