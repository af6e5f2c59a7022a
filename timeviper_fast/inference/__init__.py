"""From a video and a question to an answer.

    ask.py       the way from a video file to an answer, in eight stops
    open.py      the way from a video file to a session
    session.py   Session: a video that is asked many questions
    chat.py      Chat: a conversation about it
    stream.py    Stream: a video that is still coming
    bounded.py   what a stream forgets that may hold only so much
    watch.py     frames of a stream and questions about it, each in its turn
    footage.py   what a session knows of its video
    session_file.py  a session in a file: its tensors and texts, and what they must agree with
    stream_file.py   a stream in a file, from which it goes on
    feature_file.py  a video's merged features in a file, for any LLM behind the same encoder
    tensor_file.py   safetensors files: written piece by piece, whole or not at all
    answer.py    Answer, and generated tokens as text
    thinking.py  the part of an answer in which the model thinks
    request.py   the options of a video and of a question, checked once
    encode.py    a video to visual tokens, batch by batch
    labelled.py  frames on their way into the LLM, each behind its label
    tiles.py     a large image as tiles
    prefix.py    a video below the first stage that a question can change, while it is read
    thinning.py  what the uniform stages in there keep, decided while tokens arrive
    content_stage.py  what a content stage keeps, decided while frames arrive
    rows.py      blocks of rows of one size, on their way through it
    ended.py     the video when it is read: questions are read behind it
    prompts.py   prompts given as tensors
    step.py      one token further, as one CUDA graph where there is a GPU
    generate.py  prefill, decode, sampling
    likelihood.py  how likely a given answer is
    room.py      the memory there is: what is chosen, refused and said by it
    fit.py       whether a question fits the model's window, and the numbers that do
    plan.py      what a video and its questions need, known before anything runs
    budget.py    bytes, FLOPs and floors of one request, as the plan takes them
    memory.py    bytes of sessions, questions and activations
    work.py      FLOPs of encoding, opening, asking and decoding
    flow.py      rows that pass through each layer, and the layer where questions begin to matter
    gpus.py      GPUs by name, with their data sheets' figures
    evidence.py  where the model looked when it chose what to keep
    evidence_plot.py  the same as a picture
    facts.py     a model's sizes and settings, for `timeviper-fast info`

`TimeViper.ask`, `TimeViper.open` and `TimeViper.generate` are the public ways in.
"""
