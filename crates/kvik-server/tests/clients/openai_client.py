"""The official Python client against a Kvik server: python openai_client.py BASE_URL API_KEY"""

import asyncio
import json
import sys

import openai

base_url, key = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=120)
model = client.models.list().data[0].id
hello = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
town = {"type": "object", "required": ["town"], "additionalProperties": False,
        "properties": {"town": {"enum": ["Oslo", "Bergen"]}}}
tools = [{"type": "function", "function": {"name": "get_weather", "description": "The weather", "parameters": town}}]


def chat():
    whole = client.chat.completions.create(model=model, messages=hello, temperature=0, max_tokens=24, logprobs=True,
                                           top_logprobs=2, seed=1, stop=["\n\n\n"])
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
    stream = client.chat.completions.create(model=model, messages=hello, temperature=0, max_tokens=24, seed=1,
                                            stop=["\n\n\n"], stream=True, stream_options={"include_usage": True})
    text, usage = "", None
    for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content, (text, whole)
    assert usage.completion_tokens == whole.usage.completion_tokens
    several = client.chat.completions.create(model=model, messages=hello, max_tokens=4, n=3)
    assert [choice.index for choice in several.choices] == [0, 1, 2]


def structured():
    schema = {"type": "json_schema", "json_schema": {"name": "town", "schema": town, "strict": True}}
    answer = client.chat.completions.create(model=model, messages=hello, response_format=schema, max_tokens=60)
    assert json.loads(answer.choices[0].message.content)["town"] in ["Oslo", "Bergen"]


def functions():
    called = client.chat.completions.create(model=model, messages=hello, tools=tools, tool_choice="required",
                                            parallel_tool_calls=False, max_tokens=200, temperature=0)
    message = called.choices[0].message
    assert called.choices[0].finish_reason == "tool_calls", called
    call = message.tool_calls[0]
    assert json.loads(call.function.arguments)["town"] in ["Oslo", "Bergen"]
    following = [*hello, message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    client.chat.completions.create(model=model, messages=following, tools=tools, tool_choice="none", max_tokens=4)
    with client.chat.completions.stream(model=model, messages=hello, tools=tools, tool_choice="required",
                                        parallel_tool_calls=False, max_tokens=200, temperature=0) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.arguments == call.function.arguments, final


def completions():
    whole = client.completions.create(model=model, prompt="Once upon", max_tokens=8, temperature=0, logprobs=2)
    stream = client.completions.create(model=model, prompt="Once upon", max_tokens=8, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
    assert len(whole.choices[0].logprobs.tokens) == len(whole.choices[0].logprobs.token_logprobs)


def responses():
    whole = client.responses.create(model=model, input="hello", instructions="Be brief.", temperature=0,
                                    max_output_tokens=16)
    text, last = "", None
    for event in client.responses.create(model=model, input="hello", instructions="Be brief.", temperature=0,
                                         max_output_tokens=16, stream=True):
        text += event.delta if event.type == "response.output_text.delta" else ""
        last = event
    assert text == whole.output_text == last.response.output_text, (text, whole)


def embeddings():
    # The client asks for base64 by itself.
    vectors = client.embeddings.create(model=model, input=["a cat", "a dog"]).data
    assert len(vectors) == 2 and abs(sum(x * x for x in vectors[0].embedding) - 1) < 1e-3


def errors():
    for wrong, expected in [
        (lambda: client.chat.completions.create(model="gpt-9", messages=hello), openai.NotFoundError),
        (lambda: client.chat.completions.create(model=model, messages=[]), openai.BadRequestError),
        (lambda: client.with_options(api_key="wrong").models.list(), openai.AuthenticationError),
    ]:
        try:
            wrong()
        except expected as error:
            assert error.body["message"], error
        else:
            raise AssertionError(f"no {expected}")
    try:
        client.chat.completions.create(model=model, messages=hello, extra_body={"kv": "nothing"})
    except openai.BadRequestError as error:
        assert error.param == "kv" and error.code == "invalid_pipeline", error
    client.chat.completions.create(model=model, messages=hello, max_tokens=2, extra_body={"kv": "kivi(bits=4)"})


async def concurrent():
    many = openai.AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=120)
    answers = await asyncio.gather(*[
        many.chat.completions.create(model=model, messages=hello, max_tokens=8, temperature=0) for _ in range(8)
    ])
    assert len({answer.choices[0].message.content for answer in answers}) == 1


for check in [chat, structured, functions, completions, responses, embeddings, errors]:
    check()
    print(check.__name__, "ok")
asyncio.run(concurrent())
print("concurrent ok")
