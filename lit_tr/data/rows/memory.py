from lit_tr.data.rows.path import Rows
from lit_tr.data.rows.source import Source


class _List(Source):
    def __init__(self, data):
        self.data = data

    def rows(self):
        for i, row in enumerate(self.data):
            yield f"row {i}", row


def as_source(data, split="train"):
    if isinstance(data, Source):
        return data
    if isinstance(data, str):
        return Rows(data)
    return _List(data)
