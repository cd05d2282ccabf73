"""Which other networks the images of a test tested before."""

from qexp.analysis.confirm import note
from qexp.analysis.shrink_results import Earlier
from qexp.tracking.journal import Journal


def test_images_that_two_tests_share_are_found(tmp_path):
    journal = Journal(tmp_path / "one.jsonl", needs=("kind", "key", "values"))
    images = [str(number) for number in range(1000)]
    values = {"network": "a", "label": "A", "margin": 1.0, "holds": True}
    assert note(journal, images[:500], values) == Earlier() == note(journal, images[:500], values)
    assert note(journal, images[500:], values | {"network": "b", "label": "B"}) == Earlier()
    assert note(journal, images[499:], values | {"network": "c", "label": "C"}) == Earlier(networks=("B",))  # one copy is no look
    assert note(journal, images[:800], values | {"margin": 2.0}) == Earlier(networks=("B", "C"), margins=(1.0,))
