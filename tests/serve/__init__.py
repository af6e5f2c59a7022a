"""The server: requests, videos, turns, streams, and what it refuses; and its page.

common.py         a server in a thread, small videos and requests
conftest.py       a model and a folder of videos
page_server.py    a server with a page, videos of plain colours, and the colour of a picture
browser.py        headless Chromium under its driver
use.py            the page as a person uses it
page_pictures.py  the pictures of docs/page.md
"""
