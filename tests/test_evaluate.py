"""evaluate: the same figures on any number of ranks, those of scikit-learn, and clear refusals."""

import json

import h5py
import numpy as np
import pytest
from mpi4py import MPI
from sklearn import metrics

from mpi_parallel import evaluate
from mpi_parallel.mpi.communicator import Communicator
from mpi_parallel.options import InputError
from tests.launch import launch
from tests.samples import write_image_set, write_pile
from tests.trained import NAMES, evaluate_by, logits_of, some_network, write_network


def told(shared_path, comm, data, *options, write=None):
    """The JSON of evaluate on these ranks, which share the folder; `write` makes the data on the first one."""
    world = Communicator(comm)
    checkpoint, to = shared_path / "net.weights.h5", shared_path / f"told-{comm.size}.json"
    if comm.rank == 0:
        if not checkpoint.exists():
            write_network(checkpoint)
        if write:
            write(data)
    world.meet()
    arguments = ("--checkpoint", checkpoint, "--data", data, "--json", to, "--device", "cpu", *options)
    assert evaluate.main(world, [str(word) for word in arguments]) == 0
    world.meet()
    return json.loads(to.read_text())


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("memory", ["1G", "1K"], ids=["resident", "streamed"])
def test_figures_are_those_of_scikit_learn_on_any_number_of_ranks(shared_path, monkeypatch, memory, capsys):
    evaluate_by(monkeypatch, 16)
    path = shared_path / "set.h5"
    found = told(
        shared_path, MPI.COMM_WORLD, path, "--memory", memory, "--top-k", "2",
        write=lambda path: write_image_set(path, train=30, test=150),
    )  # fmt: skip
    with h5py.File(path) as file:
        t, z = file["test/labels"][:], logits_of(some_network(), file["test/images"][:])
    chosen = z.argmax(axis=1)
    assert found["count"] == 150
    assert found["confusion_matrix"] == metrics.confusion_matrix(t, chosen).tolist()
    assert found["accuracy"] == metrics.accuracy_score(t, chosen)
    assert found["top_k"]["2"] == metrics.top_k_accuracy_score(t, z, k=2)
    report = metrics.classification_report(t, chosen, target_names=NAMES, output_dict=True, zero_division=0)
    for row in found["per_class"]:
        assert row["f1"] == pytest.approx(report[row["class"]]["f1-score"], rel=1e-14)
        assert row["precision"] == pytest.approx(report[row["class"]]["precision"], rel=1e-14)
        assert row["support"] == report[row["class"]]["support"]
    assert found["macro"]["recall"] == pytest.approx(report["macro avg"]["recall"], rel=1e-14)
    probabilities = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    assert found["loss"] == pytest.approx(metrics.log_loss(t, probabilities), rel=1e-5)
    if MPI.COMM_WORLD.rank == 0 and MPI.COMM_WORLD.size > 1:
        assert told(shared_path, MPI.COMM_SELF, path, "--top-k", "2") == found


def test_a_table_for_people(tmp_path):
    data = write_image_set(tmp_path / "set.h5", attributes={"classes": NAMES})
    ended = launch(
        2, "-m", "mpi_parallel.evaluate", "--checkpoint", write_network(tmp_path / "n.weights.h5"), "--data", data
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert lines[0] == f"{tmp_path / 'n.weights.h5'} on {data}:test/images"
    assert lines[1].startswith("20 rows  loss ")
    assert [line.split()[0] for line in lines[4:9]] == [*NAMES, "mean", "weighted"]
    assert lines[10].split() == ["taken", "for:", "0", "1", "2"]
    counts = [list(map(int, line.split()[2:])) for line in lines[11:14]]
    assert np.sum(counts) == 20


def test_a_file_without_splits_as_a_whole_or_as_it_was_shared_out(tmp_path):
    path = write_pile(tmp_path / "pile.h5", 60)
    assert told(tmp_path, MPI.COMM_SELF, path, "--split", "all")["count"] == 60
    assert told(tmp_path, MPI.COMM_SELF, path)["count"] == 12  # 0.2 of them


def test_datasets_of_another_layout(tmp_path):
    path = write_pile(tmp_path / "pile.h5", 60, "entry/data", "entry/kind")
    named = ("--images", "/entry/data", "--labels", "/entry/kind", "--split", "all")
    assert told(tmp_path, MPI.COMM_SELF, path, *named)["count"] == 60


def test_many_classes_are_shown_by_the_worst(capsys):
    from mpi_parallel.result_merging.confusion import Tally

    tally = Tally(100)
    tally.add(np.eye(100, dtype=np.float32), np.arange(100, dtype=np.int32)[::-1].copy())
    found = tally.merge(Communicator(MPI.COMM_SELF))
    lines = evaluate.table(found, tuple(map(str, range(100))), [2])
    assert len(lines) < 45
    assert "1 rows of 0 were taken for 99" in lines[-10]


def refused(tmp_path, message, data, *options, network=None):
    checkpoint = write_network(tmp_path / "n.weights.h5", network)
    arguments = ("--checkpoint", checkpoint, "--data", data, *options)
    with pytest.raises(InputError, match=message):
        evaluate.main(Communicator(MPI.COMM_SELF), [str(word) for word in arguments])


def test_images_of_another_size(tmp_path):
    data = write_image_set(tmp_path / "set.h5")
    message = r"images 3 x 4, 12 numbers each, but the network in .* takes 15"
    refused(tmp_path, message, data, network=some_network((15, 9, 3)))


def test_other_classes(tmp_path):
    data = write_image_set(tmp_path / "set.h5", attributes={"classes": ["ant", "owl", "bee"]})
    refused(tmp_path, "class 1 is 'owl' in .* and 'bee' in .*", data)
    data = write_image_set(tmp_path / "four.h5", attributes={"classes": ["ant", "bee", "owl", "cat"]})
    refused(tmp_path, r"has 4 classes, but the network in .* tells 3 apart", data)


def test_a_label_that_the_network_does_not_know(tmp_path):
    data = write_image_set(tmp_path / "set.h5")
    with h5py.File(data, "a") as file:
        file["test/labels"][3] = 7
    refused(tmp_path, "test/labels row 3 is 7; labels are 0 to 2", data)


def test_a_split_that_is_not_there(tmp_path):
    data = write_image_set(tmp_path / "set.h5")
    refused(
        tmp_path, "has no validation split; it has train, test: name one with --split", data, "--split", "validation"
    )


def test_a_network_without_a_standardisation_takes_the_file_s(tmp_path):
    network = some_network()
    bare = type(network)(network.layers, shape=network.shape)
    data = write_image_set(tmp_path / "set.h5")
    refused(tmp_path, "tells how images are standardised", data, network=bare)
    data = write_image_set(tmp_path / "own.h5", attributes={"mean": network.mean, "std": network.std})
    write_network(tmp_path / "net.weights.h5", bare)
    found = told(tmp_path, MPI.COMM_SELF, data)
    write_network(tmp_path / "net.weights.h5", network)
    assert told(tmp_path, MPI.COMM_SELF, data)["confusion_matrix"] == found["confusion_matrix"]


def test_a_network_that_went_bad(tmp_path):
    network = some_network()
    network.layers[0][0][2, 3] = np.nan
    refused(tmp_path, "logits that are not finite", write_image_set(tmp_path / "set.h5"), network=network)


def test_a_checkpoint_that_is_none(tmp_path):
    data = write_image_set(tmp_path / "set.h5")
    for path, message in (
        (tmp_path / "absent", "no such file"),
        (tmp_path, r"neither best.h5 nor step-\*.h5"),
        (data, "no checkpoint"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate.main(Communicator(MPI.COMM_SELF), ["--checkpoint", str(path), "--data", str(data)])


def test_a_folder_is_not_evaluated(tmp_path):
    refused(tmp_path, "is a folder: convert it first", tmp_path)
