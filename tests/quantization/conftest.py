import pytest


@pytest.fixture(autouse=True)
def same_start():
    """Arrays only: there is no Keras session to clear, which takes longer than most tests here."""
