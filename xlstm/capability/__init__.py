"""What a model can do, apart from its perplexity: tasks with a right answer, and text beyond the trained
length.

`task` says what every generated task has; `parity`, `modular`, `search` and `recall` generate; `text`
measures perplexity by position and by domain; `training` trains and `measure` measures. Generators need numpy
alone.
"""
