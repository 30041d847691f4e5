"""The options of a training run."""

import argparse
import dataclasses
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from mpi_parallel import options
from mpi_parallel.config import TrainConfig
from mpi_parallel.config.learning import LARGEST_BATCH
from mpi_parallel.nn.learning_rate import learning_rate
from mpi_parallel.nn.optimizers import RULES
from mpi_parallel.options import InputError, command_line, flag, to_tables
from mpi_parallel.options.command_line import parse
from mpi_parallel.options.toml import write_toml

GROUPS = {name: group for name, group, _ in options.groups_of(TrainConfig)}
FIELDS = {field.name: field for group in GROUPS.values() for field in dataclasses.fields(group)}


def train(*words: object) -> TrainConfig:
    return parse(TrainConfig, ["--data", "some.h5", *map(str, words)], "mpi_parallel.train", "Train.")


def refusal(*words: object) -> str:
    with pytest.raises(InputError) as caught:
        train(*words)
    return str(caught.value)


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    return command_line._parser(TrainConfig, "mpi_parallel.train", "Train.", None)


class TestFields:
    @pytest.mark.parametrize("name", FIELDS)
    def test_each_is_a_flag_with_a_sentence_of_help(self, parser, name):
        action = parser._option_string_actions[flag(name)]
        assert action.dest == name
        sentence = FIELDS[name].metadata["sentence"]
        assert action.help.startswith(sentence.replace("%", "%%"))
        assert len(sentence) > 8
        assert not sentence.endswith(".")

    def test_no_two_groups_share_a_name(self):
        assert len(FIELDS) == sum(len(dataclasses.fields(group)) for group in GROUPS.values())

    def test_every_group_says_what_it_is_about(self):
        for group in GROUPS.values():
            assert re.fullmatch(r"[a-z].*[^.]", group.__doc__.strip(), re.DOTALL)

    def test_every_default_is_one_that_may_be_asked_for(self, tmp_path):
        write_toml(train(), tmp_path / "config.toml")
        assert train("--config", tmp_path / "config.toml") == train()

    def test_the_default_job_is_the_articles(self):
        made = train()
        assert made.model.hidden == (128, 64)
        assert (made.optimizer.optimizer, made.optimizer.lr) == ("adam", 0.001)
        assert (made.batch.batch_size, made.batch.epochs, made.batch.shards, made.batch.seed) == (256, 10, 64, 0)
        assert (made.model.dropout, made.optimizer.weight_decay, made.optimizer.clip_norm) == (0, 0, 0)

    def test_every_choice_is_one_that_the_maths_knows(self):
        assert set(FIELDS["optimizer"].metadata["choices"]) == set(RULES)
        rates = {
            schedule: learning_rate(5, base=1.0, schedule=schedule, warmup=0, total=10)
            for schedule in FIELDS["schedule"].metadata["choices"]
        }
        assert len(set(rates.values())) == len(rates)

    def test_a_configuration_does_not_change(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            train().batch.seed = 1


class TestValues:
    @pytest.mark.parametrize(
        "words",
        [
            ("--validation", 1), ("--validation", -0.1),
            ("--hidden", 0), ("--hidden", 128, -1), ("--dropout", 1), ("--dropout", "nan"),
            ("--batch-size", 0), ("--batch-size", LARGEST_BATCH + 1), ("--micro-batch", 0),
            ("--epochs", -1), ("--steps", -1), ("--shards", 0), ("--seed", -1), ("--seed", 2**32),
            ("--lr", 0), ("--lr", "inf"), ("--lr", "nan"), ("--warmup", -1),
            ("--weight-decay", -1), ("--weight-decay", "nan"), ("--clip-norm", -1),
            ("--threads", 0), ("--erase", 1.1),
            ("--target-accuracy", 1.5), ("--target-accuracy", 1.00000001), ("--early-stop", 0),
            ("--optimizer", "lion"), ("--schedule", "step"), ("--merge", "magic"), ("--device", "tpu"),
            ("--precision", "int4"), ("--progress", "loud"),
        ],
    )  # fmt: skip
    def test_that_make_no_sense_are_refused_by_name(self, words):
        message = refusal(*words)
        assert words[0] in message
        assert str(words[-1]) in message
        assert "0000" not in message.replace(str(words[-1]), "")  # bounds as people write them

    @pytest.mark.parametrize(
        ("words", "group", "value"),
        [
            (("--hidden",), "model", ()),
            (("--hidden", 5, 4, 3, 2), "model", (5, 4, 3, 2)),
            (("--dropout", 0.999), "model", 0.999),
            (("--batch-size", LARGEST_BATCH), "batch", LARGEST_BATCH),
            (("--epochs", 0), "batch", 0),
            (("--steps", 0), "batch", 0),
            (("--seed", 2**32 - 1), "batch", 2**32 - 1),
            (("--lr", 1e-30), "optimizer", 1e-30),
            (("--target-accuracy", 1), "run", 1.0),
            (("--target-accuracy", 0), "run", 0.0),
        ],
    )
    def test_at_the_ends_of_their_ranges_are_taken(self, words, group, value):
        name = words[0].strip("-").replace("-", "_")
        assert getattr(getattr(train(*words), group), name) == value

    def test_the_largest_batch_is_counted_exactly_in_float32(self):
        assert np.float32(LARGEST_BATCH - 1) + np.float32(1) == LARGEST_BATCH

    def test_images_and_labels_go_together(self):
        for words in (("--images", "/x"), ("--labels", "/y")):
            assert "--images and --labels" in refusal(*words)
        made = train("--images", "/x", "--labels", "/y")
        assert (made.data.images, made.data.labels) == ("/x", "/y")

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--groups", 3), "--groups 3: must be a power of two"),
            (("--groups", 128), "--groups 128 do not divide --shards 64"),
            (("--reproducible", "--merge", "flat"), "--reproducible cannot have --merge flat: MPI_Allreduce adds in"),
            (
                ("--reproducible", "--merge", "buckets"),
                "--reproducible cannot have --merge buckets: a group's gradient",
            ),
            (
                ("--reproducible", "--merge", "window", "--optimizer", "lamb"),
                "--reproducible --merge window cannot have --optimizer lamb",
            ),
        ],
    )
    def test_that_do_not_go_together_are_refused_with_both_sides(self, words, message):
        assert refusal(*words).startswith(message)

    def test_an_empty_name_of_a_file_is_refused(self):
        assert "--data is empty" in refusal("--data", "")

    def test_data_is_missing(self):
        with pytest.raises(InputError, match=r"^--data is missing"):
            parse(TrainConfig, [], "mpi_parallel.train", "Train.")

    @pytest.mark.parametrize(
        ("wrong", "right"),
        [
            ("--batchsize", "--batch-size"),
            ("--batch_size", "--batch-size"),
            ("--learning-rate", ""),
            ("--epoch", "--epochs"),
            ("--optimiser", "--optimizer"),
            ("--thread", "--threads"),
        ],
    )
    def test_a_slip_is_answered_with_what_was_meant(self, wrong, right):
        message = refusal(wrong, 1)
        assert wrong in message
        assert not right or f"did you mean {right}?" in message


def words_of(field: dataclasses.Field, hint: object) -> st.SearchStrategy:
    """Values of a field that pass its check."""
    base, many = options.base_type(hint)
    if field.metadata["choices"]:
        return st.sampled_from(field.metadata["choices"])
    values = {
        int: [0, 1, 7, 1000, 2**24, 2**32 - 1, 10**15],
        float: [0.0, 5e-324, 1e-8, 0.1, 0.999, 1.0, 1.5, 1e300],
        str: ["a", "/a b/c.h5", 'quote " and \\', "é–焼", "true", "3", "512M"],
        bool: [False, True],
    }[base]
    check = field.metadata["check"]
    values = st.sampled_from([value for value in values if check is None or check(value) is None])
    if many:
        return st.lists(values, max_size=4).map(tuple)
    return st.none() | values if field.default is None else values


VALID = st.fixed_dictionaries(
    {
        name: st.builds(
            group, **{field.name: words_of(field, hints[field.name]) for field in dataclasses.fields(group)}
        )
        for name, group, hints in options.groups_of(TrainConfig)
    }
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=2),
).filter(lambda value: value is not None and "None" not in repr(value))


class TestRoundTrip:
    @settings(suppress_health_check=[HealthCheck.filter_too_much])  # many options do not go together
    @given(VALID)
    def test_any_configuration_that_is_written_reads_as_itself(self, tmp_path_factory, groups):
        try:
            config = TrainConfig(**groups)
        except InputError:
            reject()  # options that do not go together
        path = tmp_path_factory.getbasetemp() / "round-trip.toml"
        write_toml(config, path)
        assert parse(TrainConfig, ["--config", str(path)], "mpi_parallel.train", "Train.") == config

    @given(st.sampled_from(sorted(FIELDS)), VALUES)
    def test_any_value_in_a_file_is_taken_or_refused(self, tmp_path_factory, name, value):
        """Never a traceback."""
        import tomli_w

        group = next(
            key for key, group in GROUPS.items() if name in {field.name for field in dataclasses.fields(group)}
        )
        path = tmp_path_factory.getbasetemp() / "any.toml"
        path.write_text(tomli_w.dumps({group: {name: value}}), "utf-8")
        try:
            made = train("--config", path)
        except InputError as error:
            told = str(error)
        else:
            told = name if name == "data" or to_tables(made)[group][name] == value else "another value was taken"
        assert name in told or flag(name) in told

    def test_tables_are_json(self):
        import json

        assert json.loads(json.dumps(to_tables(train("--threads", 3)))) == to_tables(train("--threads", 3))
