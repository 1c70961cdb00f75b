"""Tool calls of chats: from OpenAI's messages and tools to a prompt, and from the model's text to tool calls.

    plan = plan_chat(template.text, messages, tools=tools, tool_choice=choice, special_tokens=tokenizer.special_tokens)
    prompt = template.render(plan.messages, tools=plan.tools)
    …generate, held to plan.constraint, with skip_special_tokens=plan.skip_special_tokens…

    answer = plan.parse(text)                         # whole
    answer.as_openai(), answer.finish_reason("stop")

    stream = plan.open_stream()                       # or piece by piece, one stream a choice
    for delta in stream.push(piece): send(delta.as_openai())
    for delta in stream.finish(): send(delta.as_openai())
    stream.finish_reason("stop")

`plan` is the way in; `conversation` is its prompt side, `stream` its answers, `formats` the table of what models speak.
"""
