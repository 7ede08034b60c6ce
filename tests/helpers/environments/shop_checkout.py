"""A small checkout to mine: three modules with classes, and a suite with typical faults."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

#: The names put ``prices`` into the held-out split, and ``stock`` and ``basket`` into the training split.
FILES: Mapping[str, str] = {
    "pyproject.toml": """
        [project]
        name = "shop"
        version = "2.1"

        [tool.pytest.ini_options]
        addopts = "--cov=shop --strict-markers"
        markers = ["slow: takes long"]
        filterwarnings = ["error"]
    """,
    "LICENSE": "Do as you like.\n",
    "setup.py": "raise RuntimeError('mining must not run this')\n",
    "src/shop/__init__.py": '"""Things and what they cost."""\n',
    "src/shop/data/rates.txt": "7 19\n",
    "src/shop/prices.py": '''
        from pathlib import Path


        def rates():
            text = (Path(__file__).parent / "data" / "rates.txt").read_text()
            return [int(word) for word in text.split()]


        def gross(net, rate=None):
            """A price with tax, in cents, rounded down."""
            percent = rates()[1] if rate is None else rate
            return net + net * percent // 100


        def cheapest(prices, count):
            ranked = sorted(prices)
            return ranked[:count]
    ''',
    "src/shop/stock.py": '''
        class Stock:
            """How many there are of each thing."""

            def __init__(self):
                self.counts = {}

            def add(self, name, count=1):
                if count < 1:
                    raise ValueError(f"{count} is no number of things")
                self.counts[name] = self.counts.get(name, 0) + count
                return self.counts[name]

            def take(self, name, count=1):
                left = self.counts.get(name, 0) - count
                if left < 0:
                    return False
                self.counts[name] = left
                return True

            @property
            def total(self):
                found = 0
                for count in self.counts.values():
                    found += count
                return found


        def lowest(counts, number):
            ranked = sorted(counts)
            return ranked[:number]
    ''',
    "src/shop/basket.py": '''
        from .prices import gross
        from .stock import Stock


        def due(stock, wanted, nets):
            """What the things cost that can be had."""
            total = 0
            for name, count in wanted.items():
                if stock.take(name, count):
                    total += gross(nets[name]) * count
            return total


        def filled(names):
            stock = Stock()
            for name in names:
                stock.add(name)
            return stock


        def unlooked(number):
            return number + 1
    ''',
    "tests/__init__.py": "",
    "tests/helpers.py": "from shop.stock import Stock\n\n\ndef some():\n    return Stock()\n",
    "tests/test_stock.py": """
        import pytest
        from tests.helpers import some


        @pytest.mark.slow
        def test_adding():
            stock = some()
            assert stock.add("tea") == 1
            assert stock.add("tea", 4) == 5
            assert stock.total == 5


        def test_taking():
            stock = some()
            stock.add("tea", 2)
            assert stock.take("tea")
            assert not stock.take("tea", 2)
            assert stock.take("tea")
            assert stock.total == 0


        def test_nothing_is_refused():
            with pytest.raises(ValueError):
                some().add("tea", 0)


        def test_flaky():
            assert list({"left", "right"}) == ["left", "right"]


        def test_wrong_from_the_start():
            assert some().total == 1
    """,
    "tests/test_shop.py": """
        from pathlib import Path

        from shop.basket import due, filled
        from shop.prices import cheapest, gross


        def test_gross(tmp_path):
            written = tmp_path / "price.txt"
            written.write_text(str(gross(200)))
            assert written.read_text() == "238"
            assert gross(100, 7) == 107


        def test_it_leaves_files_behind():
            left = Path("left.txt")
            assert not left.exists()
            left.write_text("here")
            assert cheapest([3, 1, 2], 2) == [1, 2]


        def test_due():
            stock = filled(["tea", "tea", "milk"])
            assert due(stock, {"tea": 2, "milk": 2}, {"tea": 100, "milk": 50}) == 238
    """,
}


def lay_out(root: Path, others: Mapping[str, str] = {}) -> Path:
    """Write the checkout, with ``others`` added or replacing files of the same path."""
    for path, text in {**FILES, **others}.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(textwrap.dedent(text).lstrip("\n"))
    return root
