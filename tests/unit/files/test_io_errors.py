"""Errors of the machine are told apart from those of a file."""

from __future__ import annotations

import errno
import os
import pickle

import pytest

from fastt2i.files.io_errors import SystemIOError, classify_io_errors

OF_THE_MACHINE = [errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET]
OF_THE_FILE = [errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL]


@pytest.mark.parametrize("number", OF_THE_MACHINE)
def test_an_error_of_the_machine_is_told_as_one(number: int) -> None:
    sentence = f"^a.png cannot be read now: {os.strerror(number)}; that is an error of the machine and not of the file"
    with pytest.raises(SystemIOError, match=sentence), classify_io_errors("a.png"):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("error", [*(OSError(number, "x") for number in OF_THE_FILE), OSError("cut short")])
def test_an_error_of_the_file_passes(error: OSError) -> None:
    with pytest.raises(OSError) as caught, classify_io_errors("a.png"):
        raise error
    assert caught.value is error


def test_the_name_in_the_error_is_told_and_the_sentence_travels() -> None:
    with pytest.raises(SystemIOError, match=r"^b\.png cannot be read now") as caught, classify_io_errors("image 3"):
        raise OSError(errno.EIO, "Input/output error", "b.png")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
