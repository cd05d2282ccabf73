"""qexp: what does quantizing this CNN cost, and can the answer be trusted?"""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`qexp.load`, found when it is asked for: it brings pandas along, and importing qexp does not."""
    if name == "load":
        from qexp.reporting.notebook import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
