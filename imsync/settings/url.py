"""Redis URLs: which ones are accepted, and how one is shown without its password.

Only a subset of what redis-py's `from_url` takes is accepted, because the rest changes behaviour behind the
connection factory's back: options after `?` can switch certificate checks off (`ssl_cert_reqs=none`) or
change the reply shapes (`protocol=3`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote

GOOD_URLS = "for example redis://localhost:6379/0, rediss://user@host:6380/0 or unix:///run/redis.sock"
"""The hint of every error about a URL."""

_SCHEMES = ("redis", "rediss", "unix")
_MAX_DB = 2**31 - 1


@dataclass(frozen=True)
class RedisUrl:
    """The parts of an accepted Redis URL, still percent-encoded.

    Attributes:
        scheme: `redis`, `rediss` (TLS) or `unix`.
        username: the ACL user, or an empty string.
        password: the password, or an empty string; left out of the representation.
        address: everything after the user and the password: host, port, socket path, database.
    """

    scheme: str
    username: str
    password: str = field(repr=False)
    address: str


def split_url(url: str) -> RedisUrl:
    """Take a Redis URL apart.

    Raises:
        ValueError: it is not an accepted URL. The message continues the words "url …" and echoes no part of
            the URL, since a password may be in any part of a malformed one.
    """
    if not all("!" <= character <= "~" for character in url):
        raise ValueError("must be ASCII without blanks or control characters (percent-encode the others)")
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        raise ValueError("must begin with redis://, rediss:// or unix://")
    if "#" in rest:
        raise ValueError("must not contain '#' (in a password it is written %23)")
    location, question, query = rest.partition("?")
    authority, slash, path = location.partition("/")
    userinfo, _, host = authority.rpartition("@")
    if "[" in userinfo or "]" in userinfo:
        raise ValueError("must not contain '[' or ']' in the user or password (they are written %5B and %5D)")
    if scheme == "unix":
        if host or not path or "\0" in unquote(path):
            raise ValueError("needs the full path of a socket after unix://")
    else:
        _check_host(host)
        if path:
            _check_database(path)
    if question:
        if not query.startswith("db="):
            raise ValueError("takes nothing but db=NUMBER after '?'")
        if scheme != "unix" and path:
            raise ValueError("gives the database twice")
        _check_database(query.removeprefix("db="))
    username, _, password = userinfo.partition(":")
    return RedisUrl(scheme, username, password, host + slash + path + question + query)


def redact(url: str) -> str:
    """Return the URL with its password as `***`; whatever is no accepted URL is hidden whole."""
    try:
        parts = split_url(url)
    except ValueError:
        return "***" if url else ""
    user = parts.username + (":***" if parts.password else "")
    return f"{parts.scheme}://{user}@{parts.address}" if user else f"{parts.scheme}://{parts.address}"


def _check_host(host: str) -> None:
    match = re.fullmatch(r"(\[[^\]]*\]|[^:\[]*)(?::([^:]*))?", host)
    if match is None:
        raise ValueError("needs HOST:PORT (an IPv6 address in brackets)")
    name, port = match[1], match[2]
    if not name:
        raise ValueError("names no host")
    if name.startswith("["):
        from ipaddress import IPv6Address

        try:
            IPv6Address("" if "%" in name else name[1:-1])
        except ValueError:
            raise ValueError("has no valid IPv6 address in its brackets") from None
    elif not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise ValueError("has a host with characters that no host name has")
    if port is not None and not (re.fullmatch(r"[0-9]{1,5}", port) and 1 <= int(port) <= 65535):
        raise ValueError("needs a port from 1 to 65535")


def _check_database(text: str) -> None:
    if not (re.fullmatch(r"[0-9]{1,10}", text) and int(text) <= _MAX_DB):
        raise ValueError("needs a database number, 0 or more, such as /0")
