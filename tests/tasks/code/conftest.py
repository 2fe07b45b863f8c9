"""The made-up repository as a folder."""

import pytest
from shop import FILES


@pytest.fixture
def shop_folder(tmp_path):
    for path, text in FILES.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    return str(tmp_path)
