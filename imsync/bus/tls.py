"""Why an encrypted connection was not made, and what helps."""

from __future__ import annotations

import ssl

_EXPIRED, _NOT_YET_VALID = 10, 9
_OTHER_NAME = {62, 63, 64}
"""Codes of OpenSSL's verification (https://docs.openssl.org/3.0/man3/X509_STORE_CTX_get_error/); the rest of them are
ways of not trusting who has signed it."""


def explain(error: BaseException, where: str) -> tuple[str, str] | None:
    """What was wrong and what to do about it; None when encryption was not the trouble.

    Args:
        error: redis-py's, which was raised while the cause was being handled.
        where: what error messages call the server: its URL without a password.
    """
    if not where.startswith("rediss://"):
        return None
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _refused(cause)
        if isinstance(cause, ssl.SSLError):
            return _failed(cause)
        if isinstance(cause, FileNotFoundError | PermissionError):
            return f"tls_ca_file cannot be read: {cause.strerror}", "check tls_ca_file / IMSYNC_TLS_CA_FILE"
        if isinstance(cause, TimeoutError) and "handshake" in str(cause):
            return _SILENT
        cause = cause.__cause__ or cause.__context__
    return None


_SILENT = "nobody there speaks TLS", "is this the server's TLS port? without TLS the URL begins with redis://"


def _refused(error: ssl.SSLCertVerificationError) -> tuple[str, str]:
    """The server's certificate was not accepted."""
    match error.verify_code:
        case code if code == _EXPIRED:
            return "its certificate has expired", "renew the server's certificate, or set this machine's clock"
        case code if code == _NOT_YET_VALID:
            return "its certificate is not valid yet", "set this machine's clock, or the server's certificate right"
        case code if code in _OTHER_NAME:
            hint = "use the name of its certificate in --url / IMSYNC_URL, or give it one for this name"
            return f"its certificate is for another host: {error.verify_message}", hint
        case _:
            hint = (
                "set tls_ca_file / IMSYNC_TLS_CA_FILE to the CA that signed it; if that is set, this is another server"
            )
            return f"its certificate is not trusted: {error.verify_message}", hint


def _failed(error: ssl.SSLError) -> tuple[str, str]:
    reason = error.reason or ""
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) or "CERTIFICATE_REQUIRED" in reason:
        # a server that wants a client's certificate mostly has gone before its complaint is read
        hint = "is it running? if it always ends at once: set tls-auth-clients no there, imsync has no certificate"
        return "the server ended the connection", hint
    if "NO_CERTIFICATE" in reason or "PEM" in reason:
        return "tls_ca_file holds no certificate", "it must hold the CA's certificate, in PEM"
    if "WRONG_VERSION" in reason or "RECORD_LAYER" in reason:
        return _SILENT
    return f"TLS failed: {reason.lower().replace('_', ' ') or 'no reason given'}", "look at the server's log"
