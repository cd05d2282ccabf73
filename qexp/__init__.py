"""qexp: what does quantizing this CNN cost, and can the answer be trusted?"""

__version__ = "0.1.0"
