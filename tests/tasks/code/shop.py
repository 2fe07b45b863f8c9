"""A small made-up repository, and the requests that tasks are tested with."""

from subq_jax.data.tokenizers import ByteTokenizer
from subq_jax.tasks import Request

FILES = {
    "shop/prices.py": '''"""Prices."""


def add_tax(price, rate=19):
    """Increase a net amount by a share given in percent.

    >>> add_tax(100)
    119.0
    """
    share = 1 + rate / 100
    return round(price * share, 2)


class Basket:
    """What a customer buys."""

    def total_weight(self, items):
        """Sum of the weights of everything in the list of items."""
        weights = [item.weight for item in items if item.weight is not None]
        total = sum(weights, 0.0)
        return total + 0.1 * len(weights)
''',
    "shop/labels.py": '''"""Labels."""


def print_label(text, width=20):
    """Centre some words between two stars as on a sticker."""
    padded = text.strip().center(width)
    line = "*" + padded + "*"
    return line + "\\n"
''',
    "shop/orders.py": '''"""Orders."""

from shop import labels, prices


def order_total(amounts):
    """Gross amount of all amounts of one order taken together.

    >>> order_total([100, 100])
    238.0
    """
    gross = [prices.add_tax(amount) for amount in amounts]
    return round(sum(gross), 2)


def ship(name):
    sticker = labels.print_label(name, width=8)
    return sticker
''',
    "shop/refunds.py": '''"""Refunds."""

from shop import prices


def refund(amount):
    gross = prices.add_tax(amount, rate=7)
    return -gross
''',
    "shop/stock.py": '''"""Stock."""

LEVELS = {"bolt": 4, "nut": 7, "washer": 0}


def missing(levels, least):
    short = {name: least - level for name, level in levels.items() if level < least}
    return dict(sorted(short.items()))
''',
}
# Files without functions, so that a context has something to be filled with.
FILES |= {f"data/table_{number}.py": f"ROWS = {list(range(number, number + 20))}\n" for number in range(30)}


def documents() -> tuple[str, ...]:
    return tuple(f"# {path}\n{text}" for path, text in FILES.items())


def request(length: int = 4000, **changes) -> Request:
    return Request(length, ByteTokenizer(), **({"corpus": documents()} | changes))
