"""No password, token or signature is shown, whatever characters it is made of and wherever it is quoted."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.redaction import redacted, redacted_values

# Lower-case texts around them hold none of these letters, so that a rest of a secret is found.
SECRETS = st.text(alphabet="QXZ7/'\" @:?#&=%;{}[]()<>\\|+,!*\u00e9\u5bc6", min_size=1).map(lambda text: f"QZ{text}XQ")
SCHEMES = st.sampled_from(["http", "https", "postgresql", "mysql+pymysql", "mssql+pyodbc", "s3", "redis"])
NAMES = st.sampled_from(["password", "sslpassword", "passwd", "pwd", "PWD", "token", "X-Amz-Signature"])
CONTEXTS = st.sampled_from(
    ["{}", "no route to '{}' (5 tries)", 'see "{}": away', "url={} at me@host.org", "a http://other.host/x and {}"]
)


def shows_nothing_of(secret: str, text: str) -> bool:
    return "QZ" not in text and "XQ" not in text and quote(secret, safe="") not in text


@given(
    SECRETS, st.sampled_from(["http", "https", "postgresql", "mysql+pymysql", "mssql+pyodbc", "s3", "redis"]), CONTEXTS
)
def test_a_password_before_the_host_is_hidden(secret: str, scheme: str, context: str) -> None:
    for written in (secret, quote(secret), quote(secret, safe="")):
        text = redacted(context.format(f"{scheme}://me:{written}@host:5432/runs?timeout=5"))
        assert shows_nothing_of(secret, text)


@given(
    SECRETS, st.sampled_from(["password", "sslpassword", "passwd", "pwd", "PWD", "token", "X-Amz-Signature"]), CONTEXTS
)
def test_a_secret_in_a_query_is_hidden(secret: str, name: str, context: str) -> None:
    for scheme in ("https", "postgresql"):
        for written in (secret.replace("&", ""), quote(secret, safe="")):
            text = redacted(context.format(f"{scheme}://host/runs?user=me&{name}={written}&a=b"))
            assert shows_nothing_of(secret, text)


@given(SECRETS, CONTEXTS)
def test_an_odbc_connection_is_hidden_whole(secret: str, context: str) -> None:
    connection = f"DRIVER={{ODBC Driver 18}};SERVER=host;UID=me;PWD={secret};DATABASE=runs"
    for written in (
        quote(connection, safe=""),
        quote(connection, safe="/"),
        quote(quote(connection, safe=""), safe=""),
    ):
        assert shows_nothing_of(secret, redacted(context.format(f"mssql+pyodbc:///?odbc_connect={written}")))
    assert shows_nothing_of(secret.replace("&", ""), redacted(connection.replace("&", "")))


@given(st.text(alphabet="QXZ7+/=._-~", min_size=1).map(lambda text: f"QZ{text}XQ"), CONTEXTS)
def test_keys_and_signatures_of_object_stores_are_hidden(secret: str, context: str) -> None:
    links = [
        f"https://bucket.s3.host/shard.tar?AWSAccessKeyId={secret}&Signature={secret}&Expires=1",
        f"https://bucket.s3.host/shard.tar?X-Amz-Credential={secret}&X-Amz-Security-Token={secret}",
        f"https://account.blob.host/c/shard.tar?sv=2022&sig={secret}",
        f"s3://bucket/set?key={secret}",
        f"s3://{secret.replace('/', '')}@bucket/set",
        f"aws_secret_access_key={secret}",
        f"AccountKey={secret}",
    ]
    for link in links:
        assert shows_nothing_of(secret, redacted(context.format(link)))


@given(st.text(alphabet="QXZ7+/=._-~ ;,", min_size=1).map(lambda text: f"QZ{text}XQ"))
def test_a_token_in_the_text_of_headers_is_hidden(secret: str) -> None:
    headers = [
        f"Authorization: Bearer {secret}",
        f"Authorization: Basic {secret}\nHost: host",
        f"{{'Authorization': 'Bearer {secret}', 'Host': 'host'}}",
        f'{{"proxy-authorization": "{secret}"}}',
        f"X-Api-Key: {secret}",
        f"x-amz-security-token: {secret}",
        f"Set-Cookie: session={secret}",
        f"refused bearer {secret}",
        f'{{"access_token": "{secret}"}}',
    ]
    for text in headers:
        assert shows_nothing_of(secret, redacted(f"401 for GET /api with {text}"))


@given(SECRETS, CONTEXTS)
def test_what_is_redacted_stays_as_it_is(secret: str, context: str) -> None:
    once = redacted(context.format(f"https://me:{secret}@host/x?password={secret}"))
    assert redacted(once) == once


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:sec@ret@host:5000/x", "http://***@host:5000/x"),
        ("postgresql://host/runs?user=me&password=secret&a=b", "postgresql://host/runs?user=me&password=***&a=b"),
        ("no route to 'http://me:secret@host/api' (5 tries)", "no route to 'http://***@host/api' (5 tries)"),
        ("https://me:pass@host:8/a/b?sig=1#x", "https://***@host:8/a/b?***"),
        ("mssql+pyodbc:///?odbc_connect=PWD%3Dsecret&x=1", "mssql+pyodbc:///?odbc_connect=***&x=1"),
    ],
)
def test_the_rest_is_shown(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////srv/me@host/mlflow.db?timeout=5",
        "sqlite:////srv/a:b@host/mlflow.db",
        "http://127.0.0.1:5000/api/2.0/mlflow/runs/create",
        "https://host/@scope/name",
        "postgresql+psycopg2://host:5432/runs?sslmode=require",
        "/data/faces of me@home: 3 shards",
        "the tokenizer is basic, and authorised",
        "a line\nand another = 3",
    ],
)
def test_what_holds_no_secret_is_left_alone(text: str) -> None:
    assert redacted(text) == text


def test_every_text_of_a_config_is_redacted() -> None:
    config = {
        "run": {"tracking_uri": "http://me:secret@host", "steps": 3},
        "paths": ["s3://b/x?k=secret"],
        "none": None,
    }
    assert redacted_values(config) == {
        "run": {"tracking_uri": "http://***@host", "steps": 3},
        "paths": ["s3://b/x?***"],
        "none": None,
    }
