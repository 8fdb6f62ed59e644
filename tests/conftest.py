"""What several test files share."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the project; its licences keep it out of the repository."""
    if not SHARED.is_dir():
        pytest.skip("the real data beside the project are not on this machine")
    return SHARED
