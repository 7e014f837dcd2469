# SPDX-License-Identifier: MIT
"""Processes that a test did not start itself, so that they may end, and be gone, at any time."""
import os


def send(pid, number):
    """Sends a signal. Returns False if the process is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
