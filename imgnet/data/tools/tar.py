"""Tar files from elsewhere, read without trusting the names in them."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO


class UnsafeTarError(ValueError):
    """A tar file that is damaged, or with a member that could reach outside its folder; one line that names both."""


def safe_members(archive: tarfile.TarFile, where: str) -> Iterator[tarfile.TarInfo]:
    """The regular files of ``archive``, in order. Folders are passed over.

    Args:
        archive: open for reading.
        where: what to call it in an error.

    Raises:
        UnsafeTarError: an absolute name, a name with ``..``, a link, a device, a sparse file, or a damaged archive.
    """
    try:
        for member in archive:
            problem = _problem(member)
            if problem:
                raise UnsafeTarError(f"{where} is refused: its member {member.name!r} {problem}")
            if member.isreg():
                yield member
        _refuse_more(archive, where)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UnsafeTarError(f"{where} is no readable tar file: {error}") from None


def _refuse_more(archive: tarfile.TarFile, where: str) -> None:
    """What follows the last member must be empty: tarfile takes a damaged header for the end."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if any(archive.fileobj.read(tarfile.BLOCKSIZE)):
        raise UnsafeTarError(f"{where} is no readable tar file: it is damaged at byte {archive.offset}")


def open_tar(path: Path) -> tarfile.TarFile:
    """An uncompressed tar file. Raises UnsafeTarError where it is none."""
    try:
        return tarfile.open(path, "r:")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UnsafeTarError(f"{path} is no readable tar file: {error}") from None


@contextmanager
def named_where_damaged(where: str) -> Iterator[None]:
    """Around reading an archive: UnsafeTarError for what Python says of one that was cut short or is something else.

    Args:
        where: what to call it.
    """
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnsafeTarError(f"{where} is no readable tar file: {error}") from None


def contents(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    """The bytes of a regular member, as a file."""
    file = archive.extractfile(member)
    assert file is not None, "safe_members gives regular files only"
    return file


def _problem(member: tarfile.TarInfo) -> str | None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or "\\" in member.name or "\0" in member.name:
        return "has an absolute or foreign name"
    if ".." in path.parts:
        return "leaves its folder"
    if member.issym() or member.islnk():
        return f"is a link to {member.linkname!r}"
    if not (member.isreg() or member.isdir()) or member.issparse():
        return "is neither a plain file nor a folder"
    return None
