"""Redis URLs: which are accepted, what is said of the others, and that a password is never shown."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imsync.errors import ConfigError
from imsync.settings import Loaded, load, redact, split_url

SECRET = "hunter2-S3cr3t"
# /dev/null as the config file keeps whatever the machine has configured out of these tests.
EMPTY = {"IMSYNC_CONFIG": "/dev/null"}


def from_flag(url: str) -> Loaded:
    return load({"url": url}, EMPTY, Path("/"))


def from_environment(url: str) -> Loaded:
    return load({}, {**EMPTY, "IMSYNC_URL": url}, Path("/"))


def refuse(url: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        from_flag(url)
    assert SECRET not in str(caught.value) + caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://localhost/",
        "redis://localhost:6379/0",
        "redis://127.0.0.1:1/2147483647",
        "rediss://user@redis_1.example-host.org:65535/15",
        "redis://[::1]:6379/0",
        "redis://[::ffff:10.0.0.1]",
        "redis://h?db=3",
        "redis://h/?db=3",
        "unix:///run/redis.sock",
        "unix://user@/run/a@b.sock?db=1",
    ],
)
def test_good_urls(url: str) -> None:
    assert from_flag(url).settings.url == url
    assert redact(url) == url


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("localhost:6379", "must begin with redis://, rediss:// or unix://"),
        ("http://h", "must begin with redis://, rediss:// or unix://"),
        ("REDIS://h", "must begin with redis://, rediss:// or unix://"),
        (f":{SECRET}@h", "must begin with redis://, rediss:// or unix://"),
        ("redis://", "names no host"),
        ("redis://:6379/0", "names no host"),
        (f"redis://u:{SECRET}@", "names no host"),
        ("redis://h:0", "needs a port from 1 to 65535"),
        ("redis://h:65536", "needs a port from 1 to 65535"),
        ("redis://h:/0", "needs a port from 1 to 65535"),
        (f"redis://u:{SECRET}/x@h", "needs a port from 1 to 65535"),
        (f"redis://:{SECRET}#@h", "must not contain '#' (in a password it is written %23)"),
        (f"redis://:[{SECRET}@h", "must not contain '[' or ']' in the user or password"),
        ("redis://::1/0", "needs HOST:PORT (an IPv6 address in brackets)"),
        ("redis://[::1]x:1", "needs HOST:PORT (an IPv6 address in brackets)"),
        ("redis://[::g]", "has no valid IPv6 address in its brackets"),
        ("redis://[fe80::1%25eth0]", "has no valid IPv6 address in its brackets"),
        ("redis://h,g", "has a host with characters that no host name has"),
        ("redis://h/one", "needs a database number, 0 or more, such as /0"),
        ("redis://h/-1", "needs a database number, 0 or more, such as /0"),
        ("redis://h/2147483648", "needs a database number, 0 or more, such as /0"),
        ("redis://h/0/1", "needs a database number, 0 or more, such as /0"),
        ("redis://h?db=x", "needs a database number, 0 or more, such as /0"),
        ("redis://h/1?db=1", "gives the database twice"),
        ("redis://h?", "takes nothing but db=NUMBER after '?'"),
        (f"redis://h?password={SECRET}", "takes nothing but db=NUMBER after '?'"),
        ("rediss://h?ssl_cert_reqs=none", "takes nothing but db=NUMBER after '?'"),
        ("redis://h h", "must be ASCII without blanks or control characters"),
        ("redis://h\n", "must be ASCII without blanks or control characters"),
        ("redis://用户@h", "must be ASCII without blanks or control characters"),
        ("unix://", "needs the full path of a socket after unix://"),
        ("unix:///", "needs the full path of a socket after unix://"),
        ("unix://run/redis.sock", "needs the full path of a socket after unix://"),
        ("unix:///run/%00", "needs the full path of a socket after unix://"),
    ],
)
def test_bad_urls(url: str, words: str) -> None:
    error = refuse(url)
    assert error.message.startswith(f"flag --url: url {words}")
    good = error.hint.removeprefix("for example ").replace(" or ", ", ").split(", ")
    assert len(good) == 3
    for example_url in good:
        assert from_flag(example_url).settings.url == example_url
    assert redact(url) == "***"


def test_redacted_urls() -> None:
    assert redact("") == ""
    assert redact(f"redis://:{SECRET}@h:1/0") == "redis://:***@h:1/0"
    assert redact(f"unix://u:{SECRET}@/s?db=1") == "unix://u:***@/s?db=1"
    assert SECRET not in repr(split_url(f"redis://:{SECRET}@h"))


def is_refused(url: str, layer: str) -> bool:
    """Whether a layer refuses the URL as a ConfigError of one line; any other error gets through."""
    text = ""
    try:
        from_flag(url) if layer == "flag" else from_environment(url)
    except ConfigError as error:
        text = str(error)
    assert SECRET not in text
    assert text.isprintable()
    return bool(text)


PIECES = st.text(":/?#@[]%.-=&1h é\0", max_size=3)
URLS = st.one_of(
    st.text(),
    st.builds(
        "{}://{}{}{}{}{}".format,
        st.sampled_from(["redis", "rediss", "unix", "http"]),
        st.sampled_from(["", "u@", ":p@", "u:p@"]),
        st.sampled_from(["", "h", "h:1", "[::1]:65535"]) | PIECES,
        st.sampled_from(["", "/", "/0", "/run/x"]) | PIECES,
        st.sampled_from(["", "?db=1"]),
        st.just("") | PIECES,
    ),
)


@settings(max_examples=200, deadline=None)
@given(url=URLS)
@example(url="redis://a:b@[::1]:1/2")
@example(url="redis://\ud800")
def test_no_url_raises_anything_but_a_config_error(url: str) -> None:
    refused = is_refused(url, "environment")
    holds_password = bool(url) and not refused and split_url(url).password != ""
    assert is_refused(url, "flag") == (refused or holds_password)
    if url and not refused:
        # What is accepted is read the same way by the parser that redis-py uses.
        parts, standard = split_url(url), urlsplit(url)
        assert (standard.username or "", standard.password or "") == (parts.username, parts.password)
        assert standard.scheme == parts.scheme
        assert bool(standard.hostname) == (parts.scheme != "unix")
        assert standard.port is None or 1 <= standard.port <= 65535
        assert redact(redact(url)) == redact(url)


@settings(max_examples=200, deadline=None)
@given(
    scheme=st.sampled_from(["redis://", "rediss://", "http://", ""]),
    user=st.sampled_from(["", "u", "6379"]),
    before=st.text(":/?#@[]%1 é", max_size=2),
    after=st.text(":/?#@[]%1 é", max_size=2),
    host=st.sampled_from(["h", "h:1/0", "", "[::1]", "h?x=1"]),
)
def test_a_password_is_shown_nowhere(scheme: str, user: str, before: str, after: str, host: str) -> None:
    url = f"{scheme}{user}:{before}{SECRET}{after}@{host}"
    assert SECRET not in redact(url)
    assert is_refused(url, "flag")
    if not is_refused(url, "environment"):
        loaded = from_environment(url)
        assert SECRET not in json.dumps(loaded.settings.public())
        assert SECRET not in repr(loaded)
