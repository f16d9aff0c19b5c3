"""Receiving one file over HTTP: what came before an interruption is kept, and the next try goes on from there."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import requests
from tqdm import tqdm

from nystra_bench.errors import UserError

TRIES = 3
TIMEOUT = (10.0, 30.0)
"""Longest wait for a connection and between two pieces, in seconds."""
BACKOFF = 1.0
"""Wait before the second try, in seconds; doubled before each further one."""
_BUSY = {408, 425, 429, 500, 502, 503, 504}
_PIECE = 1 << 14
"""Bytes received at once; the piece in which a connection breaks is lost, so they are small."""


class _Again(Exception):
    """A failure that may pass."""


class Resuming:
    """A downloader for ``pooch.retrieve`` that resumes partial files by HTTP Range and tries again after failures.

    Proxies are taken from the environment (``HTTPS_PROXY`` and the like), as requests does.

    Args:
        part: the partial file. It outlives failures and interruptions, and moves to its place when complete.
        verified: the whole file's checksum is known, so that a part that does not fit the rest would be found out.
            Otherwise a part is only continued when the server vouches that the file is still the same (If-Range).
    """

    def __init__(self, part: Path, verified: bool):
        self.part = part
        self.verified = verified
        self.tag = part.with_name(part.name + ".tag")

    def __call__(self, url: str, output_file: str, pooch: object = None) -> None:
        """Fetch ``url`` into ``output_file``.

        Raises:
            UserError: the server refuses, or all tries failed.
        """
        with requests.Session() as session:
            for attempt in range(1, TRIES + 1):
                try:
                    self._receive(session, url)
                    break
                except (
                    _Again,
                    requests.ConnectionError,
                    requests.Timeout,
                    requests.exceptions.ChunkedEncodingError,
                ) as error:
                    if attempt == TRIES:
                        raise UserError(
                            f"{url} could not be fetched in {TRIES} tries ({_reason(error)}): "
                            "what came so far is kept, and the same command goes on from there"
                        ) from error
                    time.sleep(BACKOFF * 2 ** (attempt - 1))
                except requests.RequestException as error:
                    raise UserError(f"{url} cannot be fetched ({_reason(error)})") from error
        os.replace(self.part, output_file)
        self.tag.unlink(missing_ok=True)

    def _receive(self, session: requests.Session, url: str) -> None:
        had = self.part.stat().st_size if self.part.is_file() else 0
        headers = {"Accept-Encoding": "identity", **self._range(had)}
        with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == 416:  # nothing lies beyond what is here: it is complete, or of another file
                if _total(response) != had:
                    self.part.unlink()
                    raise _Again("the partial file did not fit")
                return
            if response.status_code in _BUSY:
                raise _Again(f"HTTP {response.status_code} {response.reason}")
            if not response.ok:
                raise UserError(f"{url} is refused by the server: HTTP {response.status_code} {response.reason}")
            start = had if _starts_at(response, had) else 0
            if response.status_code == 206 and not start:
                self.part.unlink(missing_ok=True)
                raise _Again("the server sent another part than was asked for")
            self._write(response, start)
        size, total = self.part.stat().st_size, _total(response)
        if total is not None and size != total:
            raise _Again(f"it ended after {size} of {total} bytes")

    def _range(self, had: int) -> dict[str, str]:
        tag = self.tag.read_text() if self.tag.is_file() else ""
        if not had or not (tag or self.verified):
            return {}
        return {"Range": f"bytes={had}-", **({"If-Range": tag} if tag else {})}

    def _write(self, response: requests.Response, start: int) -> None:
        if not start:
            self.tag.write_text(_validator(response))
        name = self.part.name.removesuffix(".part")
        shape = {"unit": "B", "unit_scale": True, "desc": name, "leave": False}
        with (
            self.part.open("ab" if start else "wb") as file,
            tqdm(total=_total(response), initial=start, disable=None, **shape) as bar,  # None: on terminals only
        ):
            for piece in response.iter_content(_PIECE):
                file.write(piece)
                bar.update(len(piece))


def _starts_at(response: requests.Response, offset: int) -> bool:
    """Whether the answer holds the part of the file from ``offset`` on."""
    given = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    return bool(offset and response.status_code == 206 and given and int(given[1]) == offset)


def _total(response: requests.Response) -> int | None:
    """Size of the whole file, where the server tells it."""
    if response.status_code in (206, 416):
        told = response.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        told = "" if "Content-Encoding" in response.headers else response.headers.get("Content-Length", "")
    return int(told) if told.isdigit() else None


def _validator(response: requests.Response) -> str:
    """What If-Range takes: a strong ETag, or the date of the last change."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
