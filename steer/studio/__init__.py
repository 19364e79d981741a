"""`steer studio`: a page in the browser, for this machine alone, that shows a run from the inside while it goes on.

    offers.py   what can be asked for: models, rewards, limits; what was asked, checked, and as a command to repeat it
    running.py  one run in a thread: what is seen step by step, and how it is stopped
    drawing.py  pictures, weights and scores as HTML and figures
    page.py     controls and views
    serving.py  the server and what it refuses

It needs the packages of the extra `studio`.
"""

from steer.studio.offers import Limits, Offer, Shelf, shelf
from steer.studio.serving import serve, started

__all__ = ["Limits", "Offer", "Shelf", "serve", "shelf", "started"]
