"""A server: questions about videos over HTTP, in the form of OpenAI's chat completions.

faults.py    what a client is told when a request fails
media.py     the video that a request names or brings, and where it may lie
protocol.py  requests that are read and checked, and the bodies of answers
sessions.py  videos that were read, kept by their bytes
worker.py    one model in its own thread, and the questions that wait for it
metrics.py   counts in Prometheus' text form
sse.py       an answer that is sent while it is made
library.py   the videos under the media folder, listed
film.py      facts, plan and frames of a video for the page
page.py      the page, which lies in static/, and its routes
app.py       the HTTP application
listen.py    where it listens, and how it ends
"""
