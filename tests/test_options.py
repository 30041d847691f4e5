"""Options: one field makes the flag, the TOML key, the help sentence and the check."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mpi_parallel.options import InputError, option, to_tables
from mpi_parallel.options.command_line import parse
from mpi_parallel.options.toml import write_toml
from mpi_parallel.options.values import at_least, between, duration, positive, seconds_of, share


@dataclass(frozen=True, kw_only=True)
class Cooking:
    """how it is made"""

    dish: str = option(..., "what to cook", name="DISH")
    heat: float = option(0.5, "how hot, 100% is 1", check=between(0, 1))
    egg_count: int = option(2, "how many eggs", check=at_least(1))
    spices: tuple[str, ...] = option(("salt", "pepper"), "what to add", check=lambda word: None if word else "is empty")
    minutes: tuple[int, ...] = option((), "how long each side", check=at_least(1))


@dataclass(frozen=True, kw_only=True)
class Serving:
    """how it is eaten"""

    cutlery: str = option("fork", "what to eat it with", choices=("fork", "spoon"))
    guests: int | None = option(None, "how many eat", check=at_least(1))
    candles: bool = option(False, "whether there is light")


@dataclass(frozen=True, kw_only=True)
class Meal:
    cooking: Cooking
    serving: Serving


@pytest.fixture
def config(tmp_path):
    """Write a TOML file and return its path."""

    def write(text: str) -> Path:
        path = tmp_path / "meal.toml"
        path.write_text(text)
        return path

    return write


def meal(*words: object) -> Meal:
    return parse(Meal, [str(word) for word in words], "meal", "Make a meal.")


def refusal(*words: object) -> str:
    with pytest.raises(InputError) as caught:
        meal(*words)
    return str(caught.value)


class TestFlags:
    def test_defaults(self):
        assert meal("--dish", "soup") == Meal(cooking=Cooking(dish="soup"), serving=Serving())

    def test_every_kind_of_value(self):
        made = meal(
            "--dish=soup", "--heat", "0.25", "--egg-count", 3, "--spices", "a", "b", "c", "--minutes", 4, 5,
            "--cutlery", "spoon", "--guests", 7, "--candles",
        )  # fmt: skip
        assert made.cooking == Cooking(dish="soup", heat=0.25, egg_count=3, spices=("a", "b", "c"), minutes=(4, 5))
        assert made.serving == Serving(cutlery="spoon", guests=7, candles=True)

    def test_a_list_may_be_empty_and_a_switch_turned_off(self):
        made = meal("--dish", "soup", "--spices", "--no-candles")
        assert made.cooking.spices == ()
        assert made.serving.candles is False

    def test_the_last_of_several_wins(self):
        assert meal("--dish", "soup", "--egg-count", 3, "--egg-count", 4).cooking.egg_count == 4


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ((), r"^--dish is missing: what to cook$"),
            (("--dish", "soup", "--egs-count", 3), r"--egs-count 3; did you mean --egg-count\?"),
            (("--dish", "soup", "--guest=3"), r"--guest=3; did you mean --guests\?"),
            (("--dish", "soup", "--zzz"), r"unrecognized arguments: --zzz \(python -m meal --help"),
            (("--dish", "soup", "--egg", 3), r"--egg 3; did you mean --egg-count\?"),  # no abbreviations
            (("--dish", "soup", "salad"), r"unrecognized arguments: salad \("),
            (("--dish",), r"--dish: expected one argument"),
            (("--dish", "soup", "--egg-count", "two"), r"--egg-count: invalid int value: 'two'"),
            (("--dish", "soup", "--egg-count", "2.5"), r"--egg-count: invalid int value: '2.5'"),
            (("--dish", "soup", "--heat", "hot"), r"--heat: invalid float value: 'hot'"),
            (
                ("--dish", "soup", "--cutlery", "knife"),
                r"--cutlery: invalid choice: 'knife' \(choose from '?fork'?, '?spoon",
            ),
            (("--dish", "soup", "--cutlery", "spon"), r"invalid choice: 'spon' .*; did you mean spoon\?"),
            (("--dish", "soup", "--disk", "x"), r"--disk x; did you mean --dish\?"),
            (("--dish", "soup", "--data", "x"), r"unrecognized arguments: --data x \("),
            (("--dish", "soup", "--egg-count", 0), r"^--egg-count 0: must be at least 1$"),
            (("--dish", "soup", "--egg-count", -3), r"^--egg-count -3: must be at least 1$"),
            (("--dish", "soup", "--heat", 1), r"^--heat 1.0: must be at least 0 and below 1$"),
            (("--dish", "soup", "--heat", "nan"), r"^--heat nan: must be at least 0 and below 1$"),
            (("--dish", "soup", "--minutes", 3, 0), r"^--minutes 0: must be at least 1$"),
            (("--dish", "soup", "--guests", 0), r"^--guests 0: must be at least 1$"),
        ],
    )
    def test_name_the_option_and_tell_what_is_wrong(self, words, message):
        assert re.search(message, refusal(*words))

    @pytest.mark.parametrize(
        ("check", "good", "bad"),
        [
            (at_least(2), [2, 3, 1e300], [1, -5, float("nan")]),
            (between(0, 1), [0, 0.0, 0.999], [1, -1e-9, float("nan"), float("inf")]),
            (share, [0, 0.5, 1], [-1e-9, 1.0000001, float("nan")]),
            (positive, [1e-300, 1, 1e300], [0, -1, float("nan"), float("inf")]),
        ],
    )
    def test_checks(self, check, good, bad):
        assert [value for value in good if check(value) is not None] == []
        assert [value for value in bad if check(value) is None] == []


class TestFile:
    def test_gives_options_and_flags_win_over_it(self, config):
        path = config(
            '[cooking]\ndish = "soup"\negg_count = 5\nspices = ["a"]\n[serving]\nguests = 4\ncandles = true\n'
        )
        assert meal("--config", path) == Meal(
            cooking=Cooking(dish="soup", egg_count=5, spices=("a",)), serving=Serving(guests=4, candles=True)
        )
        made = meal("--config", path, "--egg-count", 6, "--no-candles", "--spices")
        assert made == Meal(cooking=Cooking(dish="soup", egg_count=6, spices=()), serving=Serving(guests=4))

    def test_flags_win_wherever_they_stand(self, config):
        path = config('[cooking]\ndish = "soup"\n')
        assert meal("--dish", "salad", "--config", path).cooking.dish == "salad"

    def test_keys_may_be_written_as_the_flags_are(self, config):
        assert meal("--dish", "soup", "--config", config("[cooking]\negg-count = 5\n")).cooking.egg_count == 5

    def test_whole_numbers_serve_as_floats(self, config):
        heat = meal("--dish", "soup", "--config", config("[cooking]\nheat = 0\n")).cooking.heat
        assert (heat, type(heat)) == (0.0, float)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[cooking]\negs_count = 3", r"\[cooking\] has no option 'egs_count'; did you mean 'egg_count'\?"),
            ("[cooking]\nguests = 3", r"\[cooking\] has no option 'guests'"),
            ("[coking]\nheat = 0.1", r"no table \[coking\]; there are \[cooking\], \[serving\]"),
            ("heat = 0.1", r"no table \[heat\]; there are \[cooking\], \[serving\]"),
            ("cooking = 3", r"no table \[cooking\]"),
            ("[[cooking]]\nheat = 0.1", r"no table \[cooking\]"),
            ('[cooking]\negg_count = "3"', r"\[cooking\] egg_count = '3': expected int"),
            ("[cooking]\negg_count = 3.0", r"\[cooking\] egg_count = 3.0: expected int"),
            ("[cooking]\negg_count = true", r"\[cooking\] egg_count = True: expected int"),
            ("[cooking]\nheat = true", r"\[cooking\] heat = True: expected float"),
            ("[cooking]\ndish = 3", r"\[cooking\] dish = 3: expected str"),
            ("[cooking]\nminutes = 3", r"\[cooking\] minutes = 3: expected a list of int"),
            ('[cooking]\nminutes = [3, "4"]', r"\[cooking\] minutes = \[3, '4'\]: expected a list of int"),
            ("[cooking]\negg_count = [3]", r"\[cooking\] egg_count = \[3\]: expected int"),
            ("[serving]\ncandles = 1", r"\[serving\] candles = 1: expected bool"),
            ("[serving.guests]\nn = 1", r"\[serving\] guests = {'n': 1}: expected int"),
            ("[cooking]\nheat = 2.5", r"^--heat 2.5: must be at least 0 and below 1$"),
            ("[cooking]\nheat = 1" + 400 * "0", r"\[cooking\] heat = 10+: expected float"),
            ("[cooking]\nminutes = [0]", r"^--minutes 0: must be at least 1$"),
            ('[serving]\ncutlery = "knife"', r"^--cutlery knife: choose from fork, spoon$"),
            ("[cooking\n", r"meal.toml: .*line 1"),
        ],
    )
    def test_refusals_name_table_and_key(self, config, text, message):
        assert re.search(message, refusal("--dish", "soup", "--config", config(text)))

    def test_a_file_that_cannot_be_read(self, tmp_path):
        assert re.search(r"^--config .*absent.toml: .*No such file", refusal("--config", tmp_path / "absent.toml"))
        assert "--config" in refusal("--config", tmp_path)
        (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
        assert "binary.toml" in refusal("--config", tmp_path / "binary.toml")

    def test_text_is_utf_8_whatever_the_locale(self, config, tmp_path):
        path = config("")
        path.write_bytes('[cooking]\ndish = "crème – 焼"\n'.encode())
        code = (
            "import sys; from tests.test_options import *;"
            "made = meal('--config', sys.argv[1]); assert made.cooking.dish == 'cr\\xe8me \\u2013 \\u713c', made;"
            "write_toml(made, sys.argv[2]); assert meal('--config', sys.argv[2]) == made"
        )
        ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
        subprocess.run([sys.executable, "-c", code, path, tmp_path / "copy.toml"], env=ascii_only, check=True)
        assert "crème – 焼" in (tmp_path / "copy.toml").read_bytes().decode()


class TestRoundTrip:
    @pytest.mark.parametrize(
        "words",
        [
            ("--dish", "soup"),
            ("--dish", 'a "b" \\c\n', "--heat", "1e-7", "--egg-count", 10**12, "--spices", "--guests", 1, "--candles"),
            ("--dish", "", "--spices", "#", "=", "--minutes", 1, 2, 3, "--cutlery", "spoon"),
        ],
    )
    def test_what_is_written_reads_as_the_same_configuration(self, tmp_path, words):
        made = meal(*words)
        write_toml(made, tmp_path / "meal.toml")
        assert meal("--config", tmp_path / "meal.toml") == made

    def test_tables_leave_out_what_is_not_set(self):
        assert to_tables(meal("--dish", "soup")) == {
            "cooking": {"dish": "soup", "heat": 0.5, "egg_count": 2, "spices": ["salt", "pepper"], "minutes": []},
            "serving": {"cutlery": "fork", "candles": False},
        }


@dataclass(frozen=True, kw_only=True)
class Way:
    """from where to where"""

    places: tuple[str, ...] = option(..., "where to go", positional=True, name="PLACE")
    speed: float = option(1.0, "how fast", check=positive)


@dataclass(frozen=True, kw_only=True)
class Trip:
    way: Way


class TestPlaces:
    @pytest.mark.parametrize(
        "words", [["a", "b", "--speed", "2"], ["--speed", "2", "a", "b"], ["a", "--speed", "2", "b"]]
    )
    def test_an_option_given_by_its_place_may_stand_anywhere(self, words):
        assert parse(Trip, words, "trip", "Go.") == Trip(way=Way(places=("a", "b"), speed=2.0))

    def test_is_named_as_the_user_knows_it(self):
        with pytest.raises(InputError, match=r"^PLACE is missing: where to go$"):
            parse(Trip, ["--speed", "2"], "trip", "Go.")

    def test_may_stand_in_a_file(self, config):
        path = config('[way]\nplaces = ["a", "b"]\n')
        assert parse(Trip, ["--config", str(path)], "trip", "Go.").way.places == ("a", "b")
        assert parse(Trip, ["c", "--config", str(path)], "trip", "Go.").way.places == ("c",)


class TestHelp:
    def test_is_printed_once_and_by_the_rank_that_speaks(self, capsys):
        for speaks in (True, False):
            with pytest.raises(SystemExit) as caught:
                parse(Meal, ["--help"], "meal", "Make a meal.", speaks)
            assert caught.value.code == 0
        printed = capsys.readouterr()
        assert printed.out.count("Make a meal.") == 1
        assert printed.err == ""

    def test_tells_of_every_option_its_sentence_and_default(self, capsys):
        with pytest.raises(SystemExit):
            meal("--help")
        text = " ".join(capsys.readouterr().out.split())
        for words in (
            "--dish DISH what to cook (required)",
            "--heat X how hot, 100% is 1 (default 0.5)",
            "--egg-count N how many eggs (default 2)",
            "what to add (default salt pepper)",
            "--cutlery {fork,spoon} what to eat it with (default fork)",
            "--guests N how many eat",
            "--candles, --no-candles whether there is light",
            "--config FILE.toml",
            "cooking: how it is made",
        ):
            assert words in text

    def test_wins_over_mistakes_beside_it(self, capsys):
        with pytest.raises(SystemExit):
            meal("--help", "--zzz")
        assert "--egg-count" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("1d", 86400), ("2:30", 150), ("1:00:05", 3605), ("0", 0)],
)
def test_durations(text, seconds):
    assert duration(text) is None
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-3", "m", "1:2:3:4", "1:-2", "inf", "nan", "5w"])
def test_what_is_no_duration(text):
    assert duration(text)
