"""Reasoning: what a model thinks before it answers, told apart from the answer, held to a budget, and left alone by grammars.

    format = find_format(template_text, added_tokens)
    stream = AnswerStream(format, plan.open_stream(), thinks=starts_thinking(format, prompt))
    for delta in stream.push(piece): send(delta.as_openai())

`formats` is the table of markers, `stream` splits text, `structure` writes grammars that begin after the thinking.
"""
