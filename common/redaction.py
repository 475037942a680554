"""Text for logs and parameters, without the secrets in it."""

import re


def redacted(text: str) -> str:
    """Text such as a URI, or an error that quotes one, without user, password and token."""
    without_user = re.sub(r"(?<=://)[^/\s'\"]*@", "***@", text)
    return re.sub(r"(?i)(\w*(?:password|passwd|pwd|token)=)[^&\s'\"]*", r"\1***", without_user)
