"""What a user can mistype ends in one line that says what was expected, what came and what to do."""

import json
import os
import shutil
import socket

import numpy as np
import pytest

from experiments.harness import launch

SMALL = [
    *("--train_examples=100", "--test_examples=20", "--epochs=1", "--standard_epochs=1", "--attack_steps=2"),
    *("--pgd_steps=2", "--analysis_steps=2", "--train_losses=xent", "--norms=l2", "--l2_epsilons=1"),
    *("--batch_size=25", "--vae_gan_epochs=1", "--vae_gan_batch_size=25"),
]
PAPERS = "--preset=paper: expected --dataset to be one of"


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        # Data sets.
        ("manifold_distance", ["--dataset=no_such_set"], "unknown data set 'no_such_set': expected 'digits', the TFDS"),
        ("manifold_distance", ["--dataset=no_such_set"], "or the path of an .npz file"),
        ("manifold_distance", ["--dataset=digit"], "did you mean 'digits'?"),
        ("manifold_distance", ["--dataset=fashion_mist"], "did you mean 'fashion_mnist'?"),
        ("roar_kar", ["--dataset=mnst"], "did you mean 'mnist'?"),
        ("manifold_distance", ["--dataset=mnist", "--data_dir=/no/such/place"], "mnist: not found in /no/such/place"),
        ("manifold_distance", ["--dataset=none.npz"], "none.npz: expected an .npz file of the arrays"),
        ("manifold_distance", ["--dataset=generated:nowhere"], "expected a run"),
        ("manifold_distance", ["--preset=paper"], PAPERS),
        ("roar_kar", ["--preset=paper"], PAPERS),
        ("reproduce", ["--preset=paper", "--datasets=digits"], PAPERS),
        ("reproduce", ["--datasets=digits,nothing"], "unknown data set 'nothing'"),
        # Flags.
        ("manifold_distance", ["--epochz=3"], "Did you mean: epochs"),
        ("reproduce", ["--experiments"], "Unknown command line flag"),
        ("manifold_distance", ["digits"], "unexpected argument 'digits'"),
        ("manifold_distance", ["--preset=huge"], "value should be one of <quick|paper|modern>"),
        ("manifold_distance", ["--epochs=many"], "--epochs=many"),
        ("manifold_distance", ["--attack_steps=0"], "--attack_steps=0"),
        ("manifold_distance", ["--analysis_epsilon=-1"], "--analysis_epsilon=-1.0: expected a finite number >= 0"),
        ("manifold_distance", ["--l2_epsilons=1,-2"], "--l2_epsilons=['1', '-2']: expected different finite numbers"),
        ("manifold_distance", ["--l2_epsilons=1,x"], "expected different finite numbers >= 0"),
        ("manifold_distance", ["--l2_epsilons=1,1"], "expected different finite numbers >= 0"),
        ("roar_kar", ["--percentiles=0,50"], "expected different finite numbers > 0 and < 100"),
        ("roar_kar", ["--stack_size=0"], "--stack_size=0"),
        ("roar_kar", ["--retraining_seeds=0"], "--retraining_seeds=0"),
        ("manifold_distance", ["--train_examples=5000"], "--train_examples=5000: expected at most 1437"),
        ("manifold_distance", ["--batch_size=300", "--train_examples=200"], "--batch_size=300: expected at most 200"),
        # Names of what was built.
        ("manifold_distance", ["--norms=l2,l7"], "expected some of l1, l2, linf"),
        ("manifold_distance", ["--train_losses=hinge"], "expected some of xent, cw"),
        ("manifold_distance", ["--network=vgg"], "value should be one of <paper|preact-resnet-18"),
        ("manifold_distance", ["--objective=luck"], "value should be one of <adversarial|single-step|trades"),
        ("manifold_distance", ["--analysis_attack=luck"], "value should be one of <pgd|"),
        ("roar_kar", ["--attributions=gradient,luck"], "expected some of gradient"),
        ("manifold_distance", ["--manifold=plane"], "expected some of vae-gan, pca, local-pca, denoiser, exact, all"),
        ("manifold_distance", ["--manifold=exact"], "--manifold=exact: expected a data set that was generated"),
        ("manifold_distance", ["--manifold=all,pca"], "--manifold: expected 'all' by itself"),
        ("manifold_distance", ["--manifold=local-pca", "--neighbours=5"], "--pca_dimensions=10: expected at most 4"),
        # Other runs, other processes.
        ("roar_kar", ["--networks_from=nowhere"], "nowhere: expected a run directory"),
        ("manifold_distance", ["--num_processes=2"], "--coordinator_address, --num_processes and --process_id"),
        ("manifold_distance", ["--coordinator_address=a:1", "--num_processes=2", "--process_id=2"], "the last below"),
        ("roar_kar", ["--coordinator_address=a", "--num_processes=2", "--process_id=1"], "expected host:port, got 'a'"),
        ("benchmark", ["--suites=all"], "expected some of"),
        ("benchmark", ["--peers=keras"], "expected some of"),
        ("benchmark", ["--networks=vgg"], "expected some of"),
    ],
)
def test_one_line_before_work_begins(program, arguments, message, tmp_path, refused):
    assert message in refused(program, f"--workdir={tmp_path / 'run'}", *arguments)
    assert not (tmp_path / "run" / "networks").exists()
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_coordinator_that_does_not_answer_is_named(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(launch, "_PATIENCE", 1.0)
    with socket.socket() as closed:
        closed.bind(("localhost", 0))
        address = f"localhost:{closed.getsockname()[1]}"
        asked = [f"--coordinator_address={address}", "--num_processes=2", "--process_id=1"]
        said = refused("manifold_distance", f"--workdir={tmp_path / 'run'}", *asked)
    assert f"{address}: nothing answered there for 1 s" in said
    assert "--process_id=0" in said


def images_of(images):
    return {"train_images": images, "test_images": images[:2]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (images_of(np.zeros((6, 64), np.uint8)), "shape [N, H, W, C], got [6, 64]; add the missing axes"),
        (images_of(np.full((6, 8, 8, 1), 7.0)), "got values from 7 to 7"),
        (images_of(np.full((6, 8, 8, 1), np.nan)), "got values from nan"),
        ({"test_images": np.zeros((2, 4, 8, 1), np.uint8)}, "expected test images like the training images"),
        ({"train_images": np.zeros((0, 8, 8, 1), np.uint8), "train_labels": np.zeros(0, int)}, "at least one"),
        ({"train_labels": np.array([0, 1, 2, 0, 1, -1])}, "labels in 0..2, got -1..2"),
        ({"train_labels": np.eye(6)}, "expected integer labels, got float64"),
        ({"train_labels": np.array([0, 1, 2])}, "one integer label for each of 6"),
        ({"train_images": np.array([{}], object)}, "expected an .npz file"),
        ({"test_labels": None}, "expected an .npz file of the arrays train_images, train_labels"),
    ],
)
def test_a_file_of_images_is_checked(changed, message, tmp_path, refused):
    images, labels = np.zeros((6, 8, 8, 1), np.uint8), np.arange(6) % 3
    arrays = {"train_images": images, "train_labels": labels, "test_images": images[:2], "test_labels": labels[:2]}
    file = tmp_path / "mine.npz"
    np.savez(file, **{name: value for name, value in (arrays | changed).items() if value is not None})
    assert message in refused("manifold_distance", f"--dataset={file}", f"--workdir={tmp_path / 'run'}")


def test_a_truncated_file_is_named(tmp_path, refused):
    whole = tmp_path / "whole.npz"
    images, labels = np.zeros((6, 8, 8, 1), np.uint8), np.arange(6) % 3
    np.savez(whole, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    file = tmp_path / "half.npz"
    file.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert "half.npz: expected an .npz file" in refused("manifold_distance", f"--dataset={file}")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run):
    workdir = tmp_path_factory.mktemp("finished")
    toy = ["--repeats=2", "--points=100"]
    run("boundary_tilting", f"--workdir={workdir}", *toy)
    return workdir, toy


def test_a_work_directory_of_something_else_is_left_alone(finished, tmp_path, refused):
    workdir, toy = finished
    before = {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file()}
    assert "holds a run with seed = 0, asked for 7" in refused(
        "boundary_tilting", f"--workdir={workdir}", "--seed=7", *toy
    )
    said = refused("manifold_distance", f"--workdir={workdir}", *SMALL)
    assert "expected a run of manifold_distance, found one of boundary_tilting; name another --workdir" in said
    said = refused("roar_kar", f"--workdir={tmp_path / 'run'}", f"--networks_from={workdir}")
    assert "expected a run directory with trained networks, found none" in said
    assert before == {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file()}
    file = tmp_path / "file"
    file.write_text("mine")
    assert "cannot be used as a run directory" in refused("boundary_tilting", f"--workdir={file}")
    assert file.read_text() == "mine"
    assert "expected an empty directory or an earlier run" in refused("boundary_tilting", f"--workdir={tmp_path}")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a file system that refuses even root, as /proc")
def test_a_work_directory_that_cannot_be_written_is_named(refused):
    said = refused("boundary_tilting", "--workdir=/proc/self/run", "--repeats=2", "--points=100")
    assert "/proc/self/run: cannot be used as a run directory" in said
    assert "name another --workdir" in said


def test_a_damaged_measurement_is_measured_again(finished, tmp_path, run):
    workdir, toy = finished
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    (copy / "results.json").unlink()
    measurements = copy / "measurements.npz"
    measurements.write_bytes(measurements.read_bytes()[:1000])
    run("boundary_tilting", f"--workdir={copy}", *toy)
    rows = [json.loads((place / "results.json").read_text())["rows"] for place in (workdir, copy)]
    assert rows[0] == rows[1]


def test_a_half_written_configuration_is_named(finished, tmp_path, refused):
    workdir, toy = finished
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    text = (workdir / "config.json").read_text()
    (copy / "config.json").write_text(text[: len(text) // 2])
    named = f"{copy / 'config.json'}: expected what a run wrote there"
    assert named in refused("boundary_tilting", f"--workdir={copy}", *toy)
    (copy / "config.json").write_text(json.dumps([1]))
    assert named in refused("boundary_tilting", f"--workdir={copy}", *toy)


def test_a_run_that_diverges_says_what_to_try(tmp_path, refused):
    said = refused("manifold_distance", f"--workdir={tmp_path / 'run'}", "--learning_rate=1e38", *SMALL)
    assert "try a smaller learning rate" in said
