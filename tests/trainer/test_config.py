import dataclasses
import json
import math
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch

from common import documentation
from common.code import ROOT
from tests.support.trainer import digits
from trainer.command import main
from trainer.config.config import Config, from_dict, to_dict
from trainer.config.options import parse
from trainer.config.presets import PRESETS
from trainer.config.sections import MAX_SECONDS, WorkersConfig
from trainer.engines.table import ENGINES
from trainer.main import main as main_of_entry


@pytest.mark.parametrize("preset", PRESETS)
def test_a_config_survives_json(preset: str) -> None:
    config = PRESETS[preset]()
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


# PAPER: App. B for steps, batches, rates; run_cifar.py and run_celebahq.py for warm-up, clipping and variances.
@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("cifar10", (35_746_307, 800_000, 128, 2e-4, "fixedlarge", 0.1, 16)),
        ("celebahq256", (113_673_219, 500_000, 64, 2e-5, "fixedsmall", 0.0, 8)),
        ("lsun256", (113_673_219, 1_200_000, 64, 2e-5, "fixedsmall", 0.0, 8)),
    ],
)
def test_paper_presets_have_the_papers_numbers(
    preset: str, expected: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--preset", preset, "--dry-run"]) == 0
    shown = json.loads(capsys.readouterr().out)
    config = shown["config"]
    assert (
        shown["num_parameters"],
        shown["num_steps"],
        shown["global_batch_size"],
        config["optim"]["learning_rate"],
        config["diffusion"]["variance"],
        config["model"]["dropout"],
        config["optim"]["clip_slice_images"],
    ) == expected
    assert config["ema"] == {"decay": 0.9999, "warmup": False}
    assert (config["optim"]["warmup_steps"], config["optim"]["max_grad_norm"]) == (5000, 1.0)
    assert config["optim"]["clip_scope"] == "slice"


def test_the_command_line_goes_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        "[train]\nnum_steps = 5\nseed = 3\n[model]\nchannel_multipliers = [1, 1]\nattention_resolutions = [8]\n"
    )
    config = parse(["--preset", "demo", "--config", str(file), "--train.seed", "4"]).config
    assert (config.train.num_steps, config.train.seed) == (5, 4)
    assert config.model.channel_multipliers == (1, 1)
    assert config.train.global_batch_size == PRESETS["demo"]().train.global_batch_size


def test_options_win_over_the_file_whatever_the_order(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('preset = "demo_faces"\n[train]\nseed = 3\n[optim]\nmax_grad_norm = 2.0\n')
    after = parse(["--train.seed", "4", "--optim.max_grad_norm", "0.5", "--preset", "demo", "--config", str(file)])
    assert (after.preset, after.config.train.seed, after.config.optim.max_grad_norm) == ("demo", 4, 0.5)
    assert after == parse([f"--config={file}", "--preset=demo", "--optim.max_grad_norm=0.5", "--train.seed=4"])
    assert parse(["--config", str(file)]).preset == "demo_faces"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("train = 5\n", "train is 5; write [train]"),
        ("[[train]]\nseed = 1\n", "write [train]"),
        ("[train]\nseed = 1\nnum_steps =\n", "is not TOML: Invalid value (at line 3"),
        (b"[run]\nname = '\xff'\n", "is not TOML"),
        (None, "does not exist"),
        ("folder", "is a folder"),
    ],
)
def test_a_file_that_is_no_config_is_named(
    content: str | bytes | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    if content == "folder":
        file.mkdir()
    elif content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["--config", str(file), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --config {file}")
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("mistyped", ["--train.sead=1", "--trian.seed=1"])
def test_a_mistyped_option_gets_one_proposal(mistyped: str) -> None:
    with pytest.raises(ValueError, match=r"unknown option --\S+; did you mean --train.seed\?$"):
        parse([mistyped])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[trian]\nseed = 1\n", "unknown key trian.seed; did you mean train.seed?"),
        ("[train]\nnum_steps = 'many'\n", "train.num_steps = many: a whole number is needed, without quotation marks"),
        ("[train]\nnum_steps = 1.5\n", "train.num_steps = 1.5: a whole number is needed"),
        ("[train]\nnum_steps = true\n", "train.num_steps = true: a whole number is needed"),
        ("[train]\nprecision = 'fp31'\n", "did you mean fp32?"),
        ("[run]\nname = 5\n", "run.name = 5: text in quotation marks is needed"),
        ("[model]\nchannel_multipliers = [1, 'x']\n", "channel_multipliers = 1,x: a whole number is needed"),
        ("[ema]\nwarmup = 1\n", "ema.warmup = 1: true or false is needed"),
        ("preset = 'cifer10'\n", "did you mean cifar10?"),
    ],
)
def test_what_a_file_says_wrongly_is_named_with_what_is_allowed(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"^--config ") as error:
        parse(["--config", str(file)])
    assert said in str(error.value)


def test_options_are_read_with_dashes_with_underscores_and_tuples_with_commas() -> None:
    dashes = parse(["--train.num-steps", "7", "--model.channel-multipliers", "1,2", "--data.ledger"]).config
    underscores = parse(["--train.num_steps=7", "--model.channel_multipliers=[1, 2]", "--data.ledger", "true"]).config
    assert dashes == underscores
    assert (dashes.train.num_steps, dashes.model.channel_multipliers, dashes.data.ledger) == (7, (1, 2), True)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_printed_config_read_as_a_file_is_the_same_config(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["--train.seed", "5", "--run.experiment", 'a "b" \\ é']
    assert main_of_entry(["--preset", preset, *changes, "--print_config"]) == 0
    file = tmp_path / "run.toml"
    file.write_text(capsys.readouterr().out)
    assert parse(["--config", str(file)]).config == parse(["--preset", preset, *changes]).config


def test_help_shows_the_values_of_the_chosen_preset_and_what_every_field_means(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main_of_entry(["--help", "--preset", "cifar10"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "over all workers: a property of the run, whatever the number of workers. (default: 128)" in text
    assert "cumulative). (default: 1,2,2,2)" in text
    for section, kind in get_type_hints(Config).items():
        texts = documentation.fields(kind)
        for field in dataclasses.fields(kind):
            assert f"--{section}.{field.name.replace('_', '-')} " in text
            assert len(texts[field.name]) > 10


def test_no_arguments_mean_the_demo() -> None:
    assert parse([]).config == PRESETS["demo"]()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--preset", "celebahq25"], "celebahq25"),
        (["--train.global_batch_sise", "64"], "did you mean --train.global-batch-size"),
        (["--train.num_steps", "many"], "many"),
        (["--train.num_steps", "0"], "train.num_steps is 0"),
        (["--config", "/nowhere.toml"], "--config /nowhere.toml does not exist"),
        (["--workers.num_workers", "200"], "train.global_batch_size 64 is smaller than workers.num_workers 200"),
        (["--data.path", "/no/such/data"], "/no/such/data"),
        (["--data.path", "demo:cats"], "cats"),
        (["--run.name", "a/b"], "a/b"),
        (["--run.name", "mlflow.db"], "run.name 'mlflow.db' is taken"),
        (["--run.name", "MLflow.db-wal"], "run.name 'MLflow.db-wal' is taken"),
        (["--run.name", "mlartifacts"], "run.name 'mlartifacts' is taken"),
        (["--run.name", "evaluators"], "run.name 'evaluators' is taken"),
        (["--run.name", "evaluation-requests"], "run.name 'evaluation-requests' is taken"),
        (["--run.name", "reference-statistics"], "run.name 'reference-statistics' is taken"),
        (["--run.name", "reports"], "run.name 'reports' is taken"),
        (["--model.image_size", "16", "--model.attention_resolutions", "[8]"], "--model.image_size 8"),
        (["--optim.clip_scope", "slice", "--optim.clip_slice_images", "7"], "clip_slice_images 7"),
        (
            ["--optim.clip_scope", "slice", "--optim.clip_slice_images", "32", "--workers.num_workers", "3"],
            "workers.num_workers 3 is more than the 2 clipping slices",
        ),
        (
            ["--train.reduction", "exact", "--workers.num_workers", "9"],
            "workers.num_workers 9 is more than the 8 units of a batch",
        ),
        (["--train.reduction", "exact", "--train.unit_images", "7"], "set train.unit_images to a divisor"),
        (["--train.reduction", "exact", "--workers.strategy", "zero2"], "workers.strategy zero2"),
        (["--workers.min_workers", "9"], "workers.min_workers 9"),
        (["--workers.compile", "true", "--workers.strategy", "zero3"], "workers.strategy zero3"),
        (["--ema.decay", "1.5"], "1.5"),
        (["--optim.learning_rate", "1e400"], "optim.learning_rate is inf: it must be above 0 and finite"),
        (["--run.storage", "s3://bucket/runs"], "run.storage 's3://bucket/runs' is not a folder"),
        (["--run.tracking_uri", "mlruns"], "run.tracking_uri 'mlruns' is none of sqlite:///PATH"),
        (["stray"], "stray"),
    ],
)
def test_wrong_input_ends_with_code_2_and_one_helpful_line(
    arguments: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = digits(tmp_path / "data")
    storage = tmp_path / "runs"
    code = main(["--data.path", str(data), "--run.storage", str(storage), *arguments])
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert named in error
    assert not storage.exists()


NOT_FINITE = (math.nan, math.inf, -math.inf)
FLOATS = [(s, f) for s, values in to_dict(PRESETS["demo"]()).items() for f, v in values.items() if type(v) is float]
OUT_OF_RANGE = {
    "data.num_threads": (0,),
    "data.memory_gib": (-1.0,),
    "data.cache_gib": (0.0,),
    "optim.learning_rate": (0.0,),
    "optim.warmup_steps": (-1,),
    "optim.beta1": (-0.1, 1.0),
    "optim.beta2": (1.0,),
    "optim.eps": (0.0, -1e-8),
    "optim.max_grad_norm": (-1.0,),
    "ema.decay": (1.0,),
    "train.global_batch_size": (0, 10**12),
    "train.max_images_per_pass": (-1,),
    "train.num_steps": (0,),
    "checkpoint.keep_every_steps": (-1,),
    "workers.max_failures": (-2,),
    "workers.cpus_per_worker": (0,),
    "workers.step_timeout_seconds": (0, 10**14),
    "workers.collective_timeout_seconds": (-5, 10**14),
    "workers.resize_check_seconds": (0, 10**14),
    "run.storage": ("", "s3://bucket/x", "gs://bucket", "file:/srv/runs"),
    "run.experiment": ("", " "),
}


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [(*name.split("."), value) for name in OUT_OF_RANGE for value in OUT_OF_RANGE[name]]
    + [(*name, value) for name in FLOATS for value in NOT_FINITE],
)
def test_a_value_out_of_range_is_refused_by_name(section: str, field: str, value: float | str) -> None:
    sections = to_dict(PRESETS["demo"]())
    sections[section][field] = value
    with pytest.raises(ValueError, match=rf"^({section}\.)?{field} [^\n]*$"):
        from_dict(sections)


def test_the_longest_timeout_is_one_that_torch_takes() -> None:
    torch.distributed.HashStore().set_timeout(timedelta(seconds=MAX_SECONDS))


def test_the_config_and_its_presets_are_read_without_torch() -> None:
    """The command line's --help and completion need them within a second."""
    program = "import sys, trainer.config.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_every_choice_of_a_strategy_is_an_engine_and_every_engine_a_choice() -> None:
    assert get_args(get_type_hints(WorkersConfig)["strategy"]) == tuple(ENGINES)


def test_more_samples_than_can_be_counted_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--train.num_steps", str(2**60), "--dry-run"]) == 2
    assert "must be at most 2^62" in capsys.readouterr().err
