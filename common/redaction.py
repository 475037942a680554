"""Text for logs, parameters and pages, without the secrets in it. It hides rather too much than too little.

A password may hold any character, and a text that quotes an address does not say where the address ends. So what may be
a secret is hidden up to where no reading could still take it for one, if need be to the end of the text.
"""

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_RULES = [
    # scheme://user:password@host. SQLAlchemy and MLflow take everything up to the @ for the password: /, ', spaces, @.
    (r"(?s)(?<=://)[^\s/:]*:.*@", f"{HIDDEN}@"),
    # scheme://token@host
    (r"(?<=://)[^\s/?#]*@", f"{HIDDEN}@"),
    # A query of a web address: a token may bear any name there, as in signed links.
    (r"(?is)(\b(?:https?|s3|gs|abfss?|wasbs?)://[^\s?]*)\?.*", rf"\1?{HIDDEN}"),
    # ...password=..., also percent-encoded and in JSON; a value ends where the next parameter of a query begins.
    (
        r"(?i)([\w.\-]*(?:passw(?:or)?d|passphrase|passwd|pwd|secret|token|credential|signature|odbc_connect"
        r"|(?:api|access|account|private|shared)[_\-]?key)\w*['\"]?\s*(?:=|%3D|(?<=['\"])\s*:)\s*)[^&]*",
        rf"\1{HIDDEN}",
    ),
    # A line of an HTTP header, as text or as a dict.
    (
        r"(?i)(\b(?:proxy-)?authorization['\"]?\s*[:=]|\b(?:set-)?cookie['\"]?\s*[:=]|\bx-[\w\-]*(?:key|token)['\"]?\s*[:=])"
        r"[^\n]*",
        rf"\1 {HIDDEN}",
    ),
    (r"(?i)\b(bearer)\s+[^\n]*", rf"\1 {HIDDEN}"),
]


def redacted(text: str) -> str:
    """Text such as a URI, or an error that quotes one, without user, password, token and the query of a web address."""
    for pattern, shown in _RULES:
        text = re.sub(pattern, shown, text)
    return text


def redacted_values(value: Any) -> Any:
    """A config, or a part of it, with every text in it redacted."""
    if isinstance(value, Mapping):
        return {name: redacted_values(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redacted_values(part) for part in value)
    return redacted(value) if isinstance(value, str) else value
