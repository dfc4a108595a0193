"""Checks that the tests of several rooms make. What prepares (data, programs, fitted guides) is in `programs`."""

import re

import pytest


def assert_says(error: pytest.ExceptionInfo, *words: str) -> None:
    """Each of the words is in the message; alternatives are divided by `|`."""
    message = str(error.value)
    missing = [word for word in words if not re.search(word, message, re.IGNORECASE)]
    assert not missing, f"{missing} not in: {message}"
