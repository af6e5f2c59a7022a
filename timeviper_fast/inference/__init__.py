"""From a video and a question to an answer.

    ask.py       the way from a video file to an answer, in eight stops
    request.py   the options of a question, checked once
    encode.py    a video to visual tokens, batch by batch
    tiles.py     a large image as tiles
    generate.py  prefill, decode, sampling
    fit.py       whether a question fits the model, and the numbers that do
    plan.py      what a model and a request need, known before anything runs

`TimeViper.ask` and `TimeViper.generate` are the public ways in.
"""
