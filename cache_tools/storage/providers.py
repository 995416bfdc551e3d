"""The storage that an address names -> its fsspec file system, and what an error of its library means."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import fsspec

from cache_tools.format.errors import StorageFailed
from imaging.refusal import Refusal


@dataclass(frozen=True)
class Provider:
    """`errors`: those that are no OSError. `attempts`: few where the library itself tries for minutes."""

    extra: str
    errors: tuple[str, ...]
    attempts: int = 4


_HTTP = "aiohttp.ClientError"
_AMAZON = Provider("s3", ("botocore.exceptions.BotoCoreError", "botocore.exceptions.ClientError", _HTTP))
_GOOGLE = Provider("gcs", ("gcsfs.retry.HttpError", _HTTP, "google.auth.exceptions.GoogleAuthError"), 2)
_AZURE = Provider("azure", ("azure.core.exceptions.AzureError",), 1)
_PROVIDERS = {
    "s3": _AMAZON,
    "gs": _GOOGLE,
    "gcs": _GOOGLE,
    "az": _AZURE,
    "abfs": _AZURE,
    # Its library has changed the one below it more than once.
    "hf": Provider("", ("huggingface_hub.errors.HfHubHTTPError", "httpx.HTTPError", "httpx2.HTTPError")),
}
_NO_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "DefaultCredentialsError",
    "ClientAuthenticationError",
    "RefreshError",
)
_DENIED = (401, 403)
# They tell where they found credentials, every request, and errors with a traceback, which are told once below.
_TALKATIVE = ("botocore", "aiobotocore", "azure", "gcsfs", "google", "httpx", "httpx2")


def provider_of(address: str) -> Provider:
    """The provider of an address; one that is not known is refused."""
    protocol = address.partition("://")[0]
    if protocol not in _PROVIDERS:
        cure = "use s3://, gs://, az://, hf://, or a folder"
        raise Refusal(f"{protocol}:// is no storage that is known", where=address, cure=cure)
    return _PROVIDERS[protocol]


def connect(address: str) -> Any:
    """A file system of this process's own; credentials, endpoint and region are the environment's."""
    provider, protocol = provider_of(address), address.partition("://")[0]
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        return fsspec.filesystem(protocol, skip_instance_cache=True, use_listings_cache=False)
    except ImportError as error:
        package = f"pip install 'championship-sr[{provider.extra}]'" if provider.extra else "install fsspec's package"
        raise Refusal(f"{protocol}:// needs a package ({error})", where=address, cure=package) from None
    except ValueError as error:  # of adlfs, without an account
        raise denied(address, error) from None
    except errors_of(provider) as error:
        raise denied(address, error) from None


def errors_of(provider: Provider) -> tuple[type[BaseException], ...]:
    """What its library raises beside OSError, as far as it is installed."""
    kinds: list[type[BaseException]] = []
    for name in provider.errors:
        module, _, kind = name.rpartition(".")
        try:
            kinds.append(getattr(import_module(module), kind))
        except (ImportError, AttributeError):  # an older or newer library without it
            continue
    return tuple(kinds)


def is_denied(error: BaseException) -> bool:
    """Whether credentials are missing or wrong, so that trying again is useless."""
    if isinstance(error, PermissionError) or type(error).__name__ in _NO_CREDENTIALS:
        return True
    answer = getattr(error, "response", None)
    status = getattr(answer, "status_code", None) or getattr(error, "status_code", None) or getattr(error, "code", None)
    return status in _DENIED or str(error).startswith("Forbidden: ")  # the last: gcsfs's OSError


def denied(where: str, error: BaseException) -> StorageFailed:
    """The refusal for it."""
    cure = "check the credentials in the environment and what they may do here (list, read, write)"
    return StorageFailed(f"access is denied ({reason(error)})", where=where, cure=cure)


def reason(error: BaseException) -> str:
    """The first line, short: some libraries add whole answers."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
