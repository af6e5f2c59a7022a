"""Published question sets on disk: read, asked, and scored.

row.py        SetRow: one question with its video and its truth
files.py      JSON, JSON lines and parquet, refused by file and row
choices.py    readers of the multiple-choice sets
spans.py      the reader of Charades-STA
subtitles.py  the lines that are spoken while frames are shown
catalogue.py  the sets by name, and the videos that are missing
prompts.py    what the model is asked
answers.py    how an answer is read: the paper's rule and a strict one
report.py     accuracy, groups, grouped score, mIoU and recall
run.py        run_eval: videos -> sessions -> answers -> file
"""
