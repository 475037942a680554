"""The paper's table and the model registry."""

import json

import pytest

from eval.cli.commands import main
from eval.protocol import parse_protocol
from eval.registry import best_result
from eval.reports.paper import PUBLISHED, differences, format_number, paper_table
from models.snapshot import load_snapshot
from tests.eval.reports.test_report import add_result
from tests.support.evaluation import make_run


def result_of(name, **extra):
    protocol = parse_protocol(name).bind("d" * 64).describe()
    return {"protocol": protocol, "value": 3.0, "step": 1, "initial_weight_share": 0.0, **extra}


def test_the_published_numbers_are_the_papers():
    known = {(row.data, row.quantity): row.value for row in PUBLISHED}
    assert known["CIFAR-10", "FID (train)"] == "3.17"
    assert known["CIFAR-10", "FID (test)"] == "5.24"
    assert known["LSUN Church", "FID"] == "7.89"


def test_the_papers_own_protocol_differs_only_in_the_data():
    assert len(differences(result_of("fid_tf_50k"), 32)) == 1


@pytest.mark.parametrize(
    ("name", "size", "extra", "said"),
    [
        ("fid_clean_50k", 32, {}, "clean-fid's resizing"),
        ("fid_tf_10k", 32, {}, "10,000 samples"),
        ("fid_tf_50k_ddim50", 32, {}, "ddim with 50 steps"),
        ("fid_tf_50k_bf16", 32, {}, "bfloat16"),
        ("fid_tf_50k", 8, {}, "images of 8 px"),
        ("fd_efficientnet_lite0_50k", 32, {}, "nothing in common"),
        ("fid_tf_50k", 32, {"initial_weight_share": 0.82}, "82 % of the averaged weights"),
        ("bits_per_dim_512", 32, {}, "512 training images"),
        ("fid_tf_10k", 32, {}, "fewer give a larger distance"),
        ("is_tf_10k", 32, {}, "fewer give a smaller Inception Score"),
        ("kid_tf_50k", 32, {}, "the paper gives no kernel distance"),
        ("pr_tf_50k", 32, {}, "the paper gives no precision or recall"),
    ],
)
def test_every_difference_is_spelled_out(name, size, extra, said):
    found = differences(result_of(name, **extra), size)
    assert any(said in difference for difference in found), found


@pytest.mark.parametrize(
    ("name", "said"), [("fid_tf_50k", "ddpm with 20 steps"), ("bits_per_dim_50k", "a bound of 20 terms")]
)
def test_all_steps_are_those_of_the_run(name, said):
    assert any(said in difference for difference in differences(result_of(name), 32, num_timesteps=20))
    assert not any(" 20 " in difference for difference in differences(result_of(name), 32, num_timesteps=1000))


def test_small_numbers_keep_their_digits():
    assert [format_number(value) for value in (3.1749, 0.0023456, -0.00021)] == ["3.17", "0.00235", "-0.00021"]


def test_the_table_shows_the_best_number_of_each_protocol(tmp_path):
    run = make_run(tmp_path / "runs", steps=(100, 200, 300))
    for step, value in ((100, 9.0), (200, 5.0), (300, 7.0)):
        add_result(run, step, value)
    table = paper_table(run, image_size=32)
    [line] = [line for line in table.splitlines() if line.startswith("run-a")]
    assert line.split()[1:3] == ["fd_efficientnet_lite0_512", "5.00"]
    assert "3.17" in table
    assert "differs: 512 samples" in table
    assert "6.36" not in table


def test_the_best_checkpoint_is_registered_once_without_pickle_under_its_alias(tmp_path, capsys):
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    run = make_run(tmp_path / "runs", steps=(100, 200))
    add_result(run, 100, 5.0)
    add_result(run, 200, 9.0)
    command = ["register", str(run), "--protocol", "fd_efficientnet_lite0_512", "--name", "digits"]
    assert main(command) == main([*command, "--alias", "production"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("models:/digits/1 is step 100")
    uri = json.loads((run / "run.json").read_text())["tracking_uri"]
    client = MlflowClient(uri)
    [version] = client.search_model_versions("name = 'digits'")
    assert version.tags["protocol"] == "fd_efficientnet_lite0_512"
    assert client.get_model_version_by_alias("digits", "production").version == version.version
    folder = download_artifacts(artifact_uri=version.source, dst_path=str(tmp_path / "down"), tracking_uri=uri)
    assert load_snapshot(folder).provenance["step"] == 100
    names = {path.name for path in (tmp_path / "down").rglob("*") if path.is_file()}
    assert names == {"snapshot.json", "ema.safetensors"}


def test_a_protocol_without_numbers_is_named_with_what_there_is(tmp_path):
    run = make_run(tmp_path / "runs", steps=(100,))
    add_result(run, 100, 5.0)
    with pytest.raises(ValueError, match="there are: fd_efficientnet_lite0_512"):
        best_result(run, "fid_clean_10k")
