import ast
import dataclasses
import enum
import math
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capfilt.fingerprint import ADDED_LATER, NOT_IDENTITY, fingerprint, identity_fields
from capfilt.models.recipe import Beam, Lengths, Nucleus


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Recipe:
    threshold: float = 0.5
    words: tuple[str, ...] = ("a", "b")
    colour: Colour = Colour.RED
    device: str = field(default="cpu", metadata=NOT_IDENTITY)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.sampled_from(Colour),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.builds(Recipe, st.floats(0, 1), st.lists(st.text(max_size=2), max_size=2).map(tuple)),
    ),
    max_leaves=6,
)


def spelled(value: Any) -> str:
    """Write a value so that equal texts mean equal types and equal values."""
    if isinstance(value, dict):
        return f"{{{sorted((key, spelled(item)) for key, item in value.items())}}}"
    return f"[{[spelled(item) for item in value]}]" if isinstance(value, list) else repr(value)


@given(values, values)
def test_digests_are_equal_exactly_where_values_are(one: Any, other: Any) -> None:
    assert (fingerprint(one) == fingerprint(other)) == (spelled(one) == spelled(other))
    assert fingerprint([one, other]) == fingerprint((one, other))


# How a value of one kind could look like one of another kind once it is written down.
LOOKALIKES: list[Any] = [
    None, "None", "null", "", True, 1, 1.0, "1", "True", b"1", b"", 0, False, 0.0, [], {}, [[]],
    [None], ["a", "b"], ["ab"], [["a"], "b"], ["a", ["b"]], {"a": 1}, {"a": 1.0}, [("a", 1)],
    {"float": (1.0).hex()}, {"bytes": "31"}, {"enum": "Colour", "name": "RED"}, Colour.RED,
    {"dict": {}}, Recipe(), {"dataclass": "Recipe", "fields": identity_fields(Recipe())},
    identity_fields(Recipe()), 2**70, float(2**70), 0.1, 0.1 + 2**-55,
]  # fmt: skip


def test_lookalikes_have_digests_of_their_own() -> None:
    digests = [fingerprint(value) for value in LOOKALIKES]
    assert len(set(digests)) == len(LOOKALIKES)
    for digest in digests:
        assert len(digest) == 16
        assert int(digest, 16) >= 0


def test_the_order_in_which_things_are_named_does_not_matter() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(["a", "b"]) != fingerprint(["b", "a"])
    fields = [
        ("threshold", float, 0.5),
        ("words", tuple, ("a", "b")),
        ("colour", Colour, Colour.RED),
    ]
    one, again = (dataclasses.make_dataclass("Recipe", own) for own in (fields, fields[::-1]))
    assert fingerprint(again()) == fingerprint(one())
    assert fingerprint(dataclasses.make_dataclass("Other", fields)()) != fingerprint(one())


def test_a_field_that_is_no_identity_changes_nothing() -> None:
    elsewhere = Recipe(device="cuda:3")
    assert elsewhere != Recipe()
    assert fingerprint(elsewhere) == fingerprint(Recipe())
    assert fingerprint([{"x": elsewhere}]) == fingerprint([{"x": Recipe()}])
    assert set(identity_fields(elsewhere)) == {"threshold", "words", "colour"}
    # What cannot be hashed is no matter where it is no identity.
    assert fingerprint(Recipe(device=object())) == fingerprint(Recipe())  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize(
    "value",
    [object(), {1, 2}, frozenset(), print, Recipe, 1j, math.nan, math.inf, -math.inf, range(3)],
    ids=lambda value: f"{type(value).__name__}-{str(value)[:8]}",  # an address would differ
)
def test_what_has_no_stable_digest_is_refused_with_its_place(value: Any) -> None:
    with pytest.raises(TypeError, match=f"^value is a {type(value).__name__}, which has no stable"):
        fingerprint(value)
    with pytest.raises(TypeError, match=r"^value\['a'\]\[1\]\.words\[0\] is a "):
        fingerprint({"a": [1, Recipe(words=(value,))]})


@pytest.mark.parametrize("key", [1, None, b"a", ("a",)])
def test_only_strings_are_keys(key: Any) -> None:
    with pytest.raises(TypeError, match=r"value\[0\] has the key .* only strings"):
        fingerprint([{"a": 1, key: 2}])


SAMPLE = "[None, True, 3, 0.1, 'é\\ud800', b'\\x00', ('a', {'y': 1, 'x': []})]"
SAMPLE_DIGEST = "aeedf6b95bff483d"


def test_digests_never_change() -> None:
    """Every run folder there is depends on this value: it may not change, ever."""
    assert fingerprint(ast.literal_eval(SAMPLE)) == SAMPLE_DIGEST
    assert fingerprint([Nucleus(), Beam(), Lengths()]) == "a95bf0ff3a8f7fcf"


OWN = """
from dataclasses import dataclass, field
from capfilt.fingerprint import ADDED_LATER
from capfilt.models.recipe import Lengths

@dataclass(frozen=True)
class Mine(Lengths):
    later: int = field(default=0, metadata=ADDED_LATER)

@dataclass(frozen=True)
class Other(Lengths):
    later: int = field(default=0, metadata=ADDED_LATER)
"""


def test_code_that_is_not_capfilts_is_part_of_the_identity(tmp_path: Path) -> None:
    def digests(text: str) -> list[str]:
        (tmp_path / "mine.py").write_text(text)
        script = (
            "import mine; from capfilt.fingerprint import fingerprint as f, code_identity as c;"
        )
        script += "print(f(mine.Mine()), f(mine.Other()), f(mine.Mine(later=1)), c(mine.Lengths))"
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()

    one = digests(OWN)
    assert one == digests(OWN)
    assert len(set(one[:3])) == 3  # the classes' names count, and a later field that is set
    assert one[3] == "{}"  # capfilt's own counts by its version
    changed = digests(OWN + "# another comment")
    assert changed[3] == "{}"
    assert not set(one[:3]) & set(changed[:3])


def test_a_field_that_was_added_later_counts_where_it_is_set() -> None:
    with_it = dataclasses.make_dataclass(
        "Recipe", [("a", int, 1), ("b", int, field(default=2, metadata=ADDED_LATER))]
    )
    without = dataclasses.make_dataclass("Recipe", [("a", int, 1)])
    assert fingerprint(with_it()) == fingerprint(without())
    assert fingerprint(with_it(b=3)) != fingerprint(without())


def test_a_class_without_a_file_is_refused() -> None:
    script = (
        "from dataclasses import dataclass\n"
        "from capfilt.fingerprint import fingerprint\n"
        "@dataclass(frozen=True)\nclass Own: pass\n"
        "fingerprint(Own())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "put it into a Python file" in done.stderr


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_other_processes_say_the_same(hash_seed: str) -> None:
    script = f"from capfilt.fingerprint import fingerprint; print(fingerprint({SAMPLE}))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == SAMPLE_DIGEST


def test_a_module_of_ours_that_is_run_is_no_code_of_a_user() -> None:
    """`python -m capfilt.train.process` has its classes in `__main__`."""
    run = (
        "import sys; from capfilt.fingerprint import code_identity\n"
        "import importlib.util as u; spec = u.find_spec('capfilt.train.process')\n"
        "main = sys.modules['__main__']; main.__spec__ = spec\n"
        "class Fitted: pass\n"
        "assert code_identity(Fitted) == {}, code_identity(Fitted)\n"
    )
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
