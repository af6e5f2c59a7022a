"""The command line, `timeviper-fast`: ask, train, needle, and others.

    main.py        the commands together; mistakes as one line and an exit code
    mistakes.py    errors in the words of the command line
    interrupt.py   Ctrl-C while libraries are imported
    app.py         options that several commands share
    ask.py         a question about a video
    watch.py       questions about a video that goes on
    index.py       videos that are read once, each into a file
    session.py     what lies in a directory of such files
    corpus.py      questions about many videos, each answered once
    serve.py       the same over HTTP
    plan.py        what a video and questions about it need
    train.py       a model trained as a TOML file says
    train_tiny.py  a small model of the synthetic world
    convert.py     upstream's checkpoints to one directory
    inspect.py     what a model is made of, and which backend runs here
    needle.py      few frames among thousands
    held_out.py    what training has not seen
    eval.py        a published question set
    evidence_table.py  where the model looked, scored
    analyse.py     what each layer looks at
    demo.py        the embedded model on a video whose answers are known
    page.py        the same in a browser
    output.py      a file that takes an answer
    terminal.py    lines, tables, progress bars, answers

Importing these imports Typer. Torch, and Rich for terminals, are imported when a command
runs.
"""
