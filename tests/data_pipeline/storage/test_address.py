"""Addresses: which are refused, and what of them is shown."""

import time

import pytest

from data_pipeline.storage.address import shown_address
from data_pipeline.storage.shards import read_manifest


def test_other_schemes_are_refused_and_secrets_not_shown() -> None:
    with pytest.raises(ValueError, match="http, https, s3"):
        read_manifest("pipe://cat")
    assert shown_address("https://me:pass@host:8/a/b?sig=1#x") == "https://host:8/a/b"


@pytest.mark.parametrize("url", ["http://", "https:///set", "s3://", "http://me:hunter2@host:99999/x", "http://[x/y"])
def test_an_address_that_no_try_could_reach_is_refused_at_once(url: str) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match="no usable host") as caught:
        read_manifest(url)
    assert "hunter2" not in str(caught.value)
    assert time.monotonic() - started < 1
