"""Protocols: names read back, digests separate unlike numbers, wrong settings are refused in one line."""

import dataclasses
import hashlib
import json
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from eval.metrics.weights import EFFICIENTNET_LITE0_SHA256
from eval.protocol import FAMILIES, NAMES, Protocol, from_description, parse_protocol

NAMED_IN_DOCS = [
    "fid_clean_50k",
    "fid_clean_10k",
    "fid_tf_50k",
    "kid_clean_10k",
    "is_tf_50k",
    "pr_clean_10k",
    "bits_per_dim_512",
    "fd_efficientnet_lite0_512",
    "fd_efficientnet_lite0_5k",
    "kd_efficientnet_lite0_1k",
]


@pytest.mark.parametrize("name", NAMED_IN_DOCS)
def test_documented_names_are_ready_made_and_are_their_own_name(name):
    assert name in NAMES
    assert parse_protocol(name).name == name


@given(
    family=st.sampled_from(sorted(FAMILIES)),
    num_samples=st.integers(10, 200_000),
    sampling=st.sampled_from(
        [
            *(("ddpm", None, 0.0), ("ddpm", 250, 0.0), ("ddim", None, 0.0), ("ddim", 50, 0.25)),
            *(("ddim", 50, 0.12345678), ("ddim", 50, 1e-5), ("ddim", 50, 1.0)),
            *(("dpm-solver++", None, 0.0), ("dpm-solver++", 20, 0.0)),
        ]
    ),
    seed=st.integers(0, 2**31),
    precision=st.sampled_from(["float32", "bfloat16"]),
    compiled=st.booleans(),
)
def test_a_name_says_everything_that_was_set(family, num_samples, sampling, seed, precision, compiled):
    sampler, steps, eta = sampling
    assume(family != "bits_per_dim" or (sampler, steps) == ("ddpm", None))
    base = parse_protocol(f"{family}_{num_samples}")
    protocol = dataclasses.replace(
        base,
        sampler=sampler,
        num_sampling_steps=steps,
        eta=eta,
        seed=seed,
        precision=precision,
        compiled=compiled,
    )
    assert parse_protocol(protocol.name) == protocol
    assert re.fullmatch(r"[\w.-]+", protocol.name)  # MLflow takes it as a metric's name


def test_any_changed_field_changes_the_digest():
    protocol = parse_protocol("fid_clean_10k").bind("a" * 64)
    others = [
        dataclasses.replace(protocol, num_samples=9999),
        dataclasses.replace(protocol, sampler="ddim"),
        dataclasses.replace(protocol, sampler="dpm-solver++"),
        dataclasses.replace(protocol, compiled=True),
        dataclasses.replace(protocol, num_sampling_steps=100),
        dataclasses.replace(protocol, seed=1),
        dataclasses.replace(protocol, precision="bfloat16"),
        dataclasses.replace(protocol, extractor_sha256="0" * 64),
        dataclasses.replace(protocol, resize="legacy_tensorflow"),
        protocol.bind("b" * 64),
        parse_protocol("fid_clean_10k"),
    ]
    assert len({p.digest for p in [protocol, *others]}) == len(others) + 1


def test_settings_after_a_colon_equal_the_spelled_name():
    spelled = parse_protocol("fd_efficientnet_lite0_512_ddim50_seed3")
    assert parse_protocol("fd_efficientnet_lite0_512:sampler=ddim,num_sampling_steps=50,seed=3") == spelled


def test_dpm_solver_is_spelled_without_signs():
    protocol = parse_protocol("fid_clean_10k:sampler=dpm-solver++,num_sampling_steps=20,compiled=true")
    assert protocol.name == "fid_clean_10k_dpmsolver20_compiled"
    assert (protocol.sampler, protocol.compiled) == ("dpm-solver++", True)


def test_a_digest_is_what_it_was_before_compiled_was_a_field():
    """Numbers on disk keep their protocol: the file of a result is named after this digest."""
    protocol = parse_protocol("fid_clean_10k").bind("a" * 64)
    described = {key: value for key, value in protocol.describe().items() if key not in ("name", "digest", "compiled")}
    canonical = json.dumps(described, sort_keys=True, separators=(",", ":"))
    assert protocol.digest == hashlib.sha256(canonical.encode()).hexdigest()
    assert from_description(described) == protocol


def test_only_the_published_inception_is_called_fid():
    other = dataclasses.replace(parse_protocol("fid_clean_10k"), extractor_sha256="ab" * 32)
    assert other.name == "fd_inception_abababab_clean_10k"
    swapped = dataclasses.replace(other, extractor_sha256=EFFICIENTNET_LITE0_SHA256)
    assert swapped.family == "fd_inception_57934424_clean"


def test_a_description_gives_the_protocol_back():
    protocol = parse_protocol("kid_tf_10k_ddim25_eta0.5").bind("c" * 64)
    assert from_description(protocol.describe()) == protocol


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("fid_50k", "fid_50k"),
        ("fd_efficientnet_lite0", "fd_efficientnet_lite0"),
        ("fid_clean_1", "num_samples is 1"),
        ("fid_clean_10k_euler", "fid_clean_10k_euler"),
        ("fid_clean_10k:steps=3", "steps=3"),
        ("fid_clean_10k:seed=x", "seed='x'"),
        ("fid_clean_10k:eta=0.5", "eta=0.5"),
        ("fid_clean_10k_dpmsolver20_eta0.5", "eta=0.5"),
        ("fid_clean_10k:compiled=yes", "compiled='yes'"),
        ("fid_clean_10k:sampler=ddim,eta=2", "eta is 2"),
        ("fd_efficientnet_lite0_16_ddim2:resize=clean", "efficientnet_lite0+clean"),
        ("fid_clean_512:extractor=efficientnet_lite0", "efficientnet_lite0+clean"),
        ("fd_efficientnet_lite0_512:resize=junk", "efficientnet_lite0+junk"),
        ("fid_clean_512:extractor=none,resize=none", "none+none"),
        ("bits_per_dim_512:extractor=inception,resize=clean", "inception+clean"),
        ("fid_clean_512:extractor_sha256=abc", "extractor_sha256='abc'"),
        ("fd_efficientnet_lite0_512:seed=-1", "seed is -1"),
        ("kd_efficientnet_lite0_512_seed4294967296", "seed is 4294967296"),
        ("is_clean_8", "num_samples is 8"),
        ("fid_clean_10000001", "num_samples is 10000001"),
        ("pr_clean_3", "num_samples is 3"),
        ("kid_clean_512_npz0123456789abcdef", "reference=npz"),
        ("bits_per_dim_512_ddim50", "sampler=ddim"),
    ],
)
def test_a_wrong_protocol_is_named_with_what_is_allowed(text, named):
    with pytest.raises(ValueError, match=r"allowed|write|needs|belongs|needed|must be") as caught:
        parse_protocol(text)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_digests_of_numbers_on_disk_stay():
    known = {
        "fid_clean_50k": "a8208ee64e0338fc",
        "fd_efficientnet_lite0_512_ddim50_eta0.5_seed3": "4dd1a01caab5d247",
        "bits_per_dim_512": "0108842095044dbc",
    }
    assert {name: parse_protocol(name).bind("a" * 64).digest[:16] for name in known} == known


def test_bind_leaves_imported_statistics_alone():
    protocol = Protocol("frechet_distance", "inception", "0" * 64, "clean", 10, reference="npz", reference_digest="d")
    assert protocol.bind("a" * 64) == protocol
